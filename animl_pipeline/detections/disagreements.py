"""Where people and the detector say different things of the same picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from animl_pipeline.detections.detector import ANIMAL, Found
from animl_pipeline.detections.matching import SAME, Corners, overlap, same_objects

NAN = float("nan")
COLUMNS = {
    "source": "str", "image_id": "str", "object_id": "str", "kind": "str", "overlap": "float64", "confidence": "float64",
    "ymin": "float64", "xmin": "float64", "ymax": "float64", "xmax": "float64",
}  # fmt: skip


class Disagreement(NamedTuple):
    """A reviewed box that the detector did not draw (``not_found``: of no other box's; ``drawn_otherwise``: it drew one that overlaps
    less than half), or an animal of the detector's where nobody reviewed one (``not_reviewed``). ``overlap`` is the best one there is.
    """

    object_id: str
    kind: str
    overlap: float
    confidence: float
    box: Corners


def disagreements(reviewed: Mapping[str, Corners], found: Sequence[Found]) -> list[Disagreement]:
    """What differs between one picture's reviewed boxes and the detector's animals."""
    animals = [f for f in found if f.category == ANIMAL]
    matched = same_objects(reviewed, animals, ANIMAL)
    differ = []
    for object_id, box in reviewed.items():
        if object_id in matched.values():
            continue
        nearest = max(animals, key=lambda f: overlap(box, f[2:]), default=None)
        shared = overlap(box, nearest[2:]) if nearest else 0.0
        kind = "drawn_otherwise" if 0 < shared < SAME else "not_found"
        differ.append(Disagreement(object_id, kind, shared, nearest.confidence if nearest and shared else NAN, box))
    for index, animal in enumerate(animals):
        if index not in matched and all(overlap(box, animal[2:]) == 0 for box in reviewed.values()):
            differ.append(Disagreement("", "not_reviewed", 0.0, animal.confidence, animal[2:]))
    return differ
