"""Choose the images that people should review next: what the model would learn most from, and a random part for honest figures.

Most are chosen by a core-set (k-centre greedy, Sener and Savarese 2018, arXiv 1708.00489) on the model's embedding: an image far from all
animals that the model learnt from and from all images chosen before. ``benchmarks/review_next.py`` compares it with margin sampling and with
weights for rare classes, which needed more labels. No two images are of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.inference.embedding_reference import EmbeddingReference

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Reason = Literal["random", "stranger", "thin_class", "informative"]
STRANGER_SHARE, THIN_SHARE = 0.15, 0.2
"""Shares of the list for suspected strangers, and for classes of which the last verdict asked for more; at most."""
MIN_THIN_PROBABILITY = 0.1
"""An image may show a thin class if the model gives the class at least this probability."""


class Candidates(NamedTuple):
    """Animals in images that are not reviewed, one row for each box.

    Attributes:
        image: int [n], the image of each animal.
        sequence: int [n], its sequence.
        location: [n], where it was taken.
        probability: float64 [n, classes of animals].
        components: float32 [n, d], as :meth:`EmbeddingReference.components` gives them.
        stranger_score: float64 [n].
    """

    image: Ints
    sequence: Ints
    location: NDArray[np.object_]
    probability: Floats
    components: NDArray[np.float32]
    stranger_score: Floats

    def only(self, rows: Ints) -> Candidates:
        """Some of the animals."""
        return Candidates(**{name: values[rows] for name, values in self._asdict().items()})


def choose_images(
    candidates: Candidates, sequence: Ints, drawn: Ints, reference: EmbeddingReference, thin: Collection[int], count: int
) -> pd.DataFrame:
    """The chosen images, by rank: ``image``, ``reason``, and ``animal`` (row of ``candidates``; -1 for an image of the random part without one).

    Args:
        candidates: the animals.
        sequence: int [images], the sequence of each image, also of images without animals.
        drawn: the images of the random part.
        reference: animals that the model learnt from.
        thin: numbers of classes of which more is needed.
        count: how many images, with the random part.
    """
    chosen: list[tuple[int, Reason, int]] = []
    taken: set[int] = set()

    def add(images: Ints, reason: Reason, animals: Ints) -> None:
        chosen.extend((int(i), reason, int(a)) for i, a in zip(images, animals, strict=True))
        taken.update(sequence[images].tolist())

    add(drawn, "random", _surest_animal(candidates, drawn))
    parts: tuple[tuple[Reason, Callable[[Candidates], Ints]], ...] = (
        ("stranger", lambda now: strangers(now, reference.limit, round(count * STRANGER_SHARE))),
        ("thin_class", lambda now: thin_classes(now, thin, round(count * THIN_SHARE))),
        ("informative", lambda now: informative(now, reference, count - len(chosen))),
    )
    for reason, choose in parts:
        rows = np.flatnonzero(~np.isin(candidates.sequence, list(taken)))
        picks = rows[choose(candidates.only(rows))][: max(0, count - len(chosen))]
        add(candidates.image[picks], reason, picks)
    return pd.DataFrame(chosen, columns=["image", "reason", "animal"])


def draw_random(sequence: Ints, count: int, seed: int) -> Ints:
    """A random image of each of ``count`` random sequences."""
    order = np.random.default_rng(seed).permutation(len(sequence))
    _, first = np.unique(sequence[order], return_index=True)
    return np.random.default_rng(seed + 1).permutation(order[first])[:count]


def strangers(candidates: Candidates, limit: float, most: int) -> Ints:
    """The animals most unlike those that the model learnt from, above the limit, one of each sequence."""
    return _best_of_sequences(candidates, np.where(candidates.stranger_score > limit, candidates.stranger_score, 0.0), most)


def thin_classes(candidates: Candidates, thin: Collection[int], most: int) -> Ints:
    """The animals that are most probably of a thin class, in turn from each location, one of each sequence."""
    if not thin or not len(candidates.image):
        return np.zeros(0, np.int64)
    chance = candidates.probability[:, sorted(thin)].sum(axis=1)
    best = _best_of_sequences(candidates, np.where(chance >= MIN_THIN_PROBABILITY, chance, 0.0), len(candidates.image))
    turn = pd.Series(candidates.location[best]).groupby(candidates.location[best]).cumcount().to_numpy()
    return best[np.argsort(turn, kind="stable")][:most]


def informative(candidates: Candidates, reference: EmbeddingReference, most: int) -> Ints:
    """The core-set, one animal of each sequence."""
    known = squared_distances(candidates.components, reference.points)
    return core_set(candidates.components, known, np.ones(len(known)), candidates.sequence, most)


def squared_distances(components: NDArray[np.float32], points: NDArray[np.float32]) -> Floats:
    """The squared distance of each row [n, d] to the nearest point [m, d], all of length 1; 4 without points."""
    nearest = np.full(len(components), 4.0)
    for start in range(0, len(points), 256):
        nearest = np.minimum(nearest, 2 - 2 * (components @ points[start : start + 256].T).max(axis=1))
    return nearest


def core_set(components: NDArray[np.float32], distance: Floats, weight: Floats, sequence: Ints, most: int) -> Ints:
    """k-centre greedy: again and again the point with the largest weighted squared distance to all points so far.

    Args:
        components: [n, d] of length 1.
        distance: [n], squared distance of each to the points that are there already.
        weight: [n].
        sequence: [n]; after a point of a sequence, no other of it is taken.
        most: how many.
    """
    distance, free = distance.copy(), np.full(len(weight), True)
    found: list[int] = []
    while len(found) < most and free.any():
        best = int(np.where(free, distance * weight, -1.0).argmax())
        found.append(best)
        free &= sequence != sequence[best]
        distance = np.minimum(distance, 2 - 2 * components @ components[best])
    return np.array(found, np.int64)


def margins(probability: Floats) -> Floats:
    """The difference of the two largest probabilities of each row."""
    two = np.partition(probability, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0])


def _best_of_sequences(candidates: Candidates, score: Floats, most: int) -> Ints:
    """The rows with the largest positive scores, one of each sequence."""
    order = np.argsort(-score, kind="stable")
    order = order[score[order] > 0]
    _, first = np.unique(candidates.sequence[order], return_index=True)
    return np.asarray(order[np.sort(first)][:most])


def _surest_animal(candidates: Candidates, images: Ints) -> Ints:
    """The animal with the largest probability in each image; -1 for none."""
    best = pd.DataFrame({"image": candidates.image, "p": candidates.probability.max(axis=1, initial=0.0)})
    row = best.sort_values("p", kind="stable").groupby("image").tail(1).reset_index().set_index("image")["index"]
    return row.reindex(images).fillna(-1).to_numpy(np.int64)
