"""Repeat detections: a detector's box that comes again and again in the same position at one location, such as a stone or a stump.

Only unreviewed boxes of a detector are checked. Boxes of one occasion (a sequence, or an hour) count once, so an animal that sits still
is not a repeat detection. All images of a location without a sequence and a time are one occasion: it is not known whether they are more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from animl_pipeline.core.box_type import BoxTuple
from animl_pipeline.steps.detections.iou_nms_and_matching import intersection_and_union

NEIGHBOURS = 256
"""A box is first compared with so many boxes on either side, in the order of their left edges. This is mostly enough, and without it the
time would grow with the square of the number of boxes."""


class LocatedBox(NamedTuple):
    """A detector's box [ymin, xmin, ymax, xmax] at a location, on an occasion. ``key`` is the caller's name for it."""

    key: int
    location: str
    occasion: str
    box: BoxTuple


def find_repeat_detections(boxes: Iterable[LocatedBox], min_occasions: int, min_iou: float) -> set[int]:
    """Keys of the boxes that overlap boxes of at least ``min_occasions`` occasions, including their own, at the same location."""
    by_location: dict[str, list[LocatedBox]] = {}
    for box in boxes:
        if box.location:
            by_location.setdefault(box.location, []).append(box)
    return {key for at_location in by_location.values() for key in _find_at_location(at_location, min_occasions, min_iou)}


def _find_at_location(located: list[LocatedBox], min_occasions: int, min_iou: float) -> set[int]:
    number = {name: i for i, name in enumerate(sorted({b.occasion for b in located}))}
    if len(number) < min_occasions:
        return set()
    boxes = np.array([b.box for b in located])
    occasions = np.array([number[b.occasion] for b in located])
    order = np.argsort(boxes[:, 1], kind="stable")  # by left edge: boxes that overlap this much have left edges that are close
    boxes, occasions = boxes[order], occasions[order]
    repeated = set()
    for i, box in enumerate(boxes):
        reach = (box[3] - box[1]) * (1 / min_iou - 1) + 1e-9  # the largest possible distance between the left edges
        first, last = np.searchsorted(boxes[:, 1], [box[1] - reach, box[1] + reach], side="left")
        for start, stop in ((max(first, i - NEIGHBOURS), min(last, i + NEIGHBOURS)), (first, last)):
            shared, union = intersection_and_union(box, boxes[start:stop])
            if len(np.unique(occasions[start:stop][shared / union >= min_iou])) >= min_occasions:
                repeated.add(located[order[i]].key)
                break
    return repeated
