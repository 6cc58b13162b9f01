"""Animals that a model learnt from, in its embedding: how unlike all of them a new animal is, and what a list for review already covers.

The score of an animal is one minus the cosine similarity to its third nearest neighbour (deep nearest neighbours, Sun et al. 2022,
arXiv 2204.06507). On real images with one class left out it found strangers better than the largest probability, the energy and the
distances to class means (``benchmarks/strangers.py``).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.model_card import ModelCard

REFERENCE_FILE = "embedding_reference.safetensors"
DIMENSIONS = 128
"""Principal components that are kept."""
NEIGHBOUR = 3
"""The neighbour whose similarity counts: one alone may be a wrong label."""
EXCEEDED_BY = 0.05
"""This share of known animals, at locations that their neighbours do not come from, has a score above the limit."""
CONSTANT = 1e-4
"""A number of the embedding whose standard deviation is below this share of its mean is left out."""
Floats = NDArray[np.floating]


class EmbeddingReference(NamedTuple):
    """Animals that the model learnt from, each of another sequence where possible.

    Attributes:
        mean, projection: float32 [width] and [width, d]: ``(embedding - mean) @ projection`` are an animal's d principal components.
        points: float32 [n, d], the animals' components, of length 1.
        class_number: int64 [n], their classes, in the order of the model's outputs.
        limit: the score from which on an animal is a suspected stranger.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    points: NDArray[np.float32]
    class_number: NDArray[np.int64]
    limit: float

    def components(self, embeddings: Floats) -> NDArray[np.float32]:
        """Principal components of length 1, float32 [n, d], of embeddings [n, width]."""
        values = np.asarray(embeddings, np.float32).reshape(-1, len(self.mean))  # without any animal there is no width
        return _unit((values - self.mean) @ self.projection)

    def stranger_scores(self, embeddings: Floats) -> NDArray[np.float64]:
        """How unlike all points each animal is: float64 [n], 0 to 2."""
        return _score(self.components(embeddings) @ self.points.T)

    def save(self, folder: Path) -> str:
        """Write ``REFERENCE_FILE`` and return its sha256. The same reference gives the same bytes."""
        from safetensors.numpy import save

        tensors = {k: np.ascontiguousarray(v) for k, v in self._asdict().items() if k != "limit"}
        data = save(tensors | {"limit": np.array([self.limit])})
        (folder / REFERENCE_FILE).write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    @classmethod
    def load(cls, folder: Path, card: ModelCard) -> EmbeddingReference | None:
        """The reference beside a model; None if its card names none.

        Raises:
            PackageError: the file is missing, or it is not the one on the card.
        """
        from safetensors.numpy import load

        if card.embedding_reference is None:
            return None
        try:
            data = (folder / REFERENCE_FILE).read_bytes()
        except OSError as e:
            raise PackageError(f"expected {REFERENCE_FILE} in {folder}, found none; unpack a model.tar.gz there", code="file_missing") from e
        if hashlib.sha256(data).hexdigest() != card.embedding_reference:
            raise PackageError(f"{folder / REFERENCE_FILE} has another sha256 than the card says; unpack the package again", code="wrong_reference")
        tensors = load(data)
        return cls(**{k: v for k, v in tensors.items() if k != "limit"}, limit=float(tensors["limit"][0]))


def fit_reference(embeddings: Floats, class_number: NDArray[np.int64], location: NDArray[np.object_]) -> EmbeddingReference:
    """The reference of animals [n, width], n at least 2; its limit is that of these animals at locations that their neighbours do not come from."""
    mean, projection = _principal_components(np.asarray(embeddings, np.float64))
    points = _unit((np.asarray(embeddings, np.float32) - mean) @ projection)
    reference = EmbeddingReference(mean, projection, points, np.asarray(class_number, np.int64), 2.0)
    return reference._replace(limit=limit_of(reference, points, location, location))


def limit_of(reference: EmbeddingReference, components: NDArray[np.float32], location: NDArray[np.object_], of_points: NDArray[np.object_]) -> float:
    """The score that ``EXCEEDED_BY`` of known animals exceed, if points of an animal's own location do not count.

    Args:
        reference: the points.
        components: float32 [n, d] of known animals.
        location: [n], where they were.
        of_points: where the points were.
    """
    similarity = components @ reference.points.T
    similarity[location[:, None] == of_points[None, :]] = -1.0
    return float(np.quantile(_score(similarity), 1 - EXCEEDED_BY)) if len(components) else 2.0


def _principal_components(values: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [width] and projection [width, d] of standardised values [n, width]."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    divisor = np.where(deviation > CONSTANT * np.abs(mean), deviation, np.inf)
    standardised = (values - mean) / divisor
    # The eigenvectors of the smaller one of both products; the sign is fixed so that the bytes are the same everywhere.
    if len(values) < values.shape[1]:
        power, vectors = np.linalg.eigh(standardised @ standardised.T)
        axes = standardised.T @ (vectors / np.sqrt(np.maximum(power, 1e-9)))
    else:
        power, axes = np.linalg.eigh(standardised.T @ standardised)
    kept = np.argsort(-power, kind="stable")[: min(DIMENSIONS, len(values) - 1)]
    axes = axes[:, kept]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return mean.astype(np.float32), (axes / divisor[:, None]).astype(np.float32)


def _score(similarity: NDArray[np.float32]) -> NDArray[np.float64]:
    """One minus the similarity to the third nearest point, float64 [n], of similarities [n, points]."""
    k = min(NEIGHBOUR, similarity.shape[1])
    return np.asarray(1.0 - np.partition(similarity, -k, axis=1)[:, -k], np.float64)


def _unit(values: Floats) -> NDArray[np.float32]:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9), np.float32)
