"""Boxes that come again and again at the same spot of a place: a stone or a stump that a detector takes for an animal.

Only a detector's boxes are looked at, never reviewed ones. A burst counts once, so that an animal that sits still is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Corners = tuple[float, float, float, float]


NEAR = 256
"""So many boxes to either side are looked at before all that may overlap: else a place's time grows with the square of its boxes."""


class Spotted(NamedTuple):
    """A detector's box at a place, on an occasion (a burst, or an hour); ``key`` is the caller's."""

    key: int
    location: str
    occasion: str
    box: Corners


def repeated(spotted: Iterable[Spotted], occasions: int, overlap: float) -> set[int]:
    """The keys of boxes that overlap boxes of at least ``occasions`` occasions (their own among them) at their place."""
    locations: dict[str, list[Spotted]] = {}
    for s in spotted:
        if s.location:
            locations.setdefault(s.location, []).append(s)
    again: set[int] = set()
    for at_location in locations.values():
        again |= _at_location(at_location, occasions, overlap)
    return again


def _at_location(spotted: list[Spotted], occasions: int, overlap: float) -> set[int]:
    names = {name: i for i, name in enumerate(sorted({s.occasion for s in spotted}))}
    if len(names) < occasions:
        return set()
    boxes = np.array([s.box for s in spotted])
    when = np.array([names[s.occasion] for s in spotted])
    order = np.argsort(boxes[:, 1], kind="stable")  # by left side: boxes that overlap so much begin close to each other
    boxes, when = boxes[order], when[order]
    again = set()
    for i, box in enumerate(boxes):
        reach = (box[3] - box[1]) * (1 / overlap - 1) + 1e-9  # how far another box's left side may be away
        first, last = np.searchsorted(boxes[:, 1], [box[1] - reach, box[1] + reach], side="left")
        near = max(first, i - NEAR), min(last, i + NEAR)  # mostly enough where a stone is in thousands of pictures
        for some in (near, (first, last)):
            same = _overlaps(box, boxes[slice(*some)]) >= overlap
            if len(np.unique(when[slice(*some)][same])) >= occasions:
                again.add(spotted[order[i]].key)
                break
    return again


def _overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of one box [ymin, xmin, ymax, xmax] with each of [n, 4]."""
    height = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    width = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = height.clip(0) * width.clip(0)
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    result: NDArray[np.float64] = shared / ((box[2] - box[0]) * (box[3] - box[1]) + areas - shared)
    return result
