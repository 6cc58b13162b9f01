"""Overlap of boxes: IoU, non-maximum suppression, detections matched with reviewed boxes, and repeat detections of one location.

They are written in numpy, not taken from torchvision, because importing torch takes seconds and a cached network needs no torch.
Boxes are [x1, y1, x2, y2] or [y1, x1, y2, x2]; the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.core.box_type import BoxTuple
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.detector import Detection

MIN_IOU = 0.5
"""From this intersection over union on, two boxes are of the same animal (as in PASCAL VOC)."""
NAN = float("nan")
NEIGHBOURS = 256
"""A box is first compared with so many boxes on either side, in the order of their left edges. This is mostly enough, and without it the
time would grow with the square of the number of boxes."""


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 where they do not overlap."""
    first = min(a[2], b[2]) - max(a[0], b[0])
    second = min(a[3], b[3]) - max(a[1], b[1])
    if first <= 0 or second <= 0:
        return 0.0
    shared = first * second
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def intersection_and_union(box: NDArray[Any], others: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Areas of intersection and union of one box [4] with each of the others [n, 4]. Both have the shape [n]."""
    first = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    second = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = first.clip(0) * second.clip(0)
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    return shared, (box[2] - box[0]) * (box[3] - box[1]) + areas - shared


def non_maximum_suppression(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.intp], max_iou: float, max_boxes: int = 300
) -> NDArray[np.intp]:
    """Indices of the boxes to keep, highest score first.

    ``boxes``: [n, 4]. ``classes``: [n]. A box only suppresses boxes of its own class. ``max_iou``: if two boxes overlap more, the one with
    the lower score is dropped.
    """
    # Shift each class to its own plane, so that boxes of different classes do not overlap.
    shifted = boxes - boxes.min(initial=0) + classes[:, None] * (np.ptp(boxes) + 1 if len(boxes) else 0)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < max_boxes:
        best, order = order[0], order[1:]
        kept.append(int(best))
        shared, union = intersection_and_union(shifted[best], shifted[order])
        order = order[shared <= max_iou * union]
    return np.asarray(kept, np.intp)


def match_animals(reviewed: Mapping[str, BoxTuple], detections: Sequence[Detection]) -> dict[int, str]:
    """Index of a detected animal → annotation id of the reviewed box that it matches. Both are matched at most once, best overlaps first."""
    pairs = sorted(
        (-iou(box, detection[2:]), annotation_id, index)
        for annotation_id, box in reviewed.items()
        for index, detection in enumerate(detections)
        if detection.category == ANIMAL
    )
    matched: dict[int, str] = {}
    for negative_iou, annotation_id, index in pairs:
        if -negative_iou >= MIN_IOU and index not in matched and annotation_id not in matched.values():
            matched[index] = annotation_id
    return matched


def find_disagreements(reviewed: Mapping[str, BoxTuple], detections: Sequence[Detection]) -> list[tuple[Any, ...]]:
    """The differences between one image's reviewed boxes and its detected animals, as rows of disagreements.parquet without the image.

    Kinds: ``not_found`` (no detection overlaps the reviewed box), ``drawn_otherwise`` (the best detection overlaps it less than half),
    ``not_reviewed`` (a detected animal that overlaps no reviewed box; its annotation id is empty).
    """
    animals = [d for d in detections if d.category == ANIMAL]
    matched = match_animals(reviewed, animals)
    rows: list[tuple[Any, ...]] = []
    for annotation_id, box in reviewed.items():
        if annotation_id in matched.values():
            continue
        best = max(animals, key=lambda d: iou(box, d[2:]), default=None)
        overlap = iou(box, best[2:]) if best else 0.0
        kind = "drawn_otherwise" if 0 < overlap < MIN_IOU else "not_found"
        rows.append((annotation_id, kind, overlap, best.confidence if best and overlap else NAN, *box))
    for index, animal in enumerate(animals):
        if index not in matched and all(iou(box, animal[2:]) == 0 for box in reviewed.values()):
            rows.append(("", "not_reviewed", 0.0, animal.confidence, *animal[2:]))
    return rows


class LocatedBox(NamedTuple):
    """A detector's box [ymin, xmin, ymax, xmax] at a location, on an occasion. ``key`` is the caller's name for it."""

    key: int
    location: str
    occasion: str
    box: BoxTuple


def find_repeat_detections(boxes: Iterable[LocatedBox], min_occasions: int, min_iou: float) -> set[int]:
    """Keys of the boxes that overlap boxes of at least ``min_occasions`` occasions, including their own, at the same location.

    Such a box is mostly a stone or a stump. Boxes of one occasion (a sequence, or an hour) count once, so an animal that sits still is no
    repeat detection. All images of a location without a sequence and a time are one occasion: it is not known whether they are more.
    """
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
