"""Which found box is which reviewed one, where the detector draws all boxes anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from animl_pipeline.steps.detections.detector import Detection

SAME = 0.5
"""Intersection over union from which a found and a reviewed box are of the same animal (as in PASCAL VOC)."""

Corners = tuple[float, float, float, float]


def same_objects(reviewed: Mapping[str, Corners], found: Sequence[Detection], category: str) -> dict[int, str]:
    """Index of a found box → id of the reviewed one; each at most once, the best overlaps first. Boxes are [ymin, xmin, ymax, xmax]."""
    pairs = sorted(
        (-overlap(corners, f[2:]), annotation_id, index)
        for annotation_id, corners in reviewed.items()
        for index, f in enumerate(found)
        if f.category == category
    )
    matched: dict[int, str] = {}
    for negative, annotation_id, index in pairs:
        if -negative >= SAME and index not in matched and annotation_id not in matched.values():
            matched[index] = annotation_id
    return matched


def overlap(a: Corners, b: Corners) -> float:
    """Intersection over union of two boxes [ymin, xmin, ymax, xmax]."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return 0.0
    shared = height * width
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
