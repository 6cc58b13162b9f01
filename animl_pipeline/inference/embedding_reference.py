"""Animals that a model learnt from, in its embedding: how unlike all of them a new animal is, and what a list for review already covers.

The score of an animal is the sum of two, each divided by its spread over known animals: the Mahalanobis distance to the nearest class (Lee et
al. 2018, arXiv 1807.03888) and the negative logarithm of the largest probability (Hendrycks and Gimpel 2017, arXiv 1610.02136). On real images
with one class left out this found strangers better than either, than the energy, and than nearest neighbours (``benchmarks/strangers.py``).
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
EXCEEDED_BY = 0.05
"""This share of known animals, at locations that the reference does not come from, has a score above the limit."""
FOLDS = 5
"""Groups of locations. The animals of each are compared with those of the others, to know the usual scores."""
CONSTANT = 1e-4
"""A number of the embedding whose standard deviation is below this share of its mean is left out."""
Floats = NDArray[np.floating]


class EmbeddingReference(NamedTuple):
    """Animals that the model learnt from, each of another sequence where possible.

    Attributes:
        mean, projection: float32 [width] and [width, d]: ``(embedding - mean) @ projection`` are an animal's d principal components.
        points: float32 [n, d], the animals' components, of length 1.
        class_number: int64 [n], their classes, in the order of the model's outputs.
        class_means, whitening: float32 [k, d] and [d, d]: of the classes that are there; the distance of an animal to a class is the squared
            length of ``(components - mean) @ whitening``.
        spread: float64 [2], the usual distance and the usual negative log probability of known animals.
        limit: the score from which on an animal is a suspected stranger.
    """

    mean: NDArray[np.float32]
    projection: NDArray[np.float32]
    points: NDArray[np.float32]
    class_number: NDArray[np.int64]
    class_means: NDArray[np.float32]
    whitening: NDArray[np.float32]
    spread: NDArray[np.float64]
    limit: float

    def components(self, embeddings: Floats) -> NDArray[np.float32]:
        """Principal components of length 1, float32 [n, d], of embeddings [n, width]."""
        values = np.asarray(embeddings, np.float32).reshape(-1, len(self.mean))  # without any animal there is no width
        return _unit((values - self.mean) @ self.projection)

    def distances(self, components: NDArray[np.float32]) -> NDArray[np.float64]:
        """The distance of each animal to the nearest class: float64 [n]."""
        return _distances(components, self.class_means, self.whitening)

    def stranger_scores(self, embeddings: Floats, probability: Floats) -> NDArray[np.float64]:
        """How unlike all known animals each animal is: float64 [n] of embeddings [n, width] and probabilities [n, outputs of the model]."""
        return _score(self.distances(self.components(embeddings)), unsureness(probability), self.spread)

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
        if tensors.keys() != set(cls._fields):
            raise PackageError(f"{REFERENCE_FILE} is of another version; run `animl-pipeline retrain PLAN` once", code="other_version")
        return cls(**{k: v for k, v in tensors.items() if k != "limit"}, limit=float(tensors["limit"][0]))


def fit_reference(embeddings: Floats, class_number: NDArray[np.int64]) -> EmbeddingReference:
    """The reference of animals [n, width], n at least 2; without a limit."""
    mean, projection = _principal_components(np.asarray(embeddings, np.float64))
    points = _unit((np.asarray(embeddings, np.float32) - mean) @ projection)
    numbers = np.asarray(class_number, np.int64)
    return EmbeddingReference(mean, projection, points, numbers, *_classes(points, numbers), np.ones(2), np.inf)


def with_limit(reference: EmbeddingReference, distances: Floats, probability: Floats) -> EmbeddingReference:
    """The reference with the limit that ``EXCEEDED_BY`` of known animals exceed, by their distances [n] and probabilities [n, outputs]."""
    unsure = unsureness(probability)
    spread = np.maximum([distances.std(), unsure.std()], 1e-9)
    return reference._replace(spread=spread, limit=float(np.quantile(_score(distances, unsure, spread), 1 - EXCEEDED_BY)))


def distances_at_other_locations(embeddings: Floats, class_number: NDArray[np.int64], location: NDArray[np.object_]) -> NDArray[np.float64]:
    """The distance of each animal to the nearest class of a reference made from other groups of locations; [n] of embeddings [n, width].

    The principal components are those of the others, too: on its own components an animal would seem further away than a new one.
    """
    fold = np.unique(location.astype(str), return_inverse=True)[1] % FOLDS
    found = np.zeros(len(fold))
    for held_out in np.unique(fold):
        own, others = fold == held_out, fold != held_out
        if others.sum() > 1:
            reference = fit_reference(embeddings[others], class_number[others])
            found[own] = reference.distances(reference.components(embeddings[own]))
    return found


def unsureness(probability: Floats) -> NDArray[np.float64]:
    """The negative logarithm of the largest probability of each row."""
    return np.asarray(-np.log(np.maximum(np.asarray(probability, np.float64).max(axis=1, initial=0.0), 1e-12)))


def _classes(points: NDArray[np.float32], class_number: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The means of the classes [k, d], and the whitening [d, d] of the animals within them, with Ledoit and Wolf's shrinkage."""
    from sklearn.covariance import ledoit_wolf

    values = points.astype(np.float64)
    number = np.unique(class_number, return_inverse=True)[1]
    means = np.stack([values[number == c].mean(axis=0) for c in range(int(number.max()) + 1)])
    covariance = ledoit_wolf(values - means[number])[0] + 1e-9 * np.eye(values.shape[1])
    return means.astype(np.float32), np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)


def _distances(components: NDArray[np.float32], means: NDArray[np.float32], whitening: NDArray[np.float32]) -> NDArray[np.float64]:
    animals, classes = components.astype(np.float64) @ whitening, means.astype(np.float64) @ whitening
    squared = (animals**2).sum(axis=1)[:, None] + (classes**2).sum(axis=1) - 2 * animals @ classes.T
    return np.asarray(np.maximum(squared.min(axis=1, initial=np.inf), 0.0))


def _score(distances: Floats, unsure: Floats, spread: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(distances / spread[0] + unsure / spread[1])


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


def _unit(values: Floats) -> NDArray[np.float32]:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9), np.float32)
