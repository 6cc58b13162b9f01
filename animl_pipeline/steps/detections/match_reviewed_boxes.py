"""Compare a detector's boxes with the boxes that people reviewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from animl_pipeline.core.box_type import BoxTuple
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.detector import Detection
from animl_pipeline.steps.detections.iou_and_nms import iou

MIN_IOU = 0.5
"""From this intersection over union on, two boxes are of the same animal (as in PASCAL VOC)."""


NAN = float("nan")


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
