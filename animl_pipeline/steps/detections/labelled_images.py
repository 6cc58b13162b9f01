"""The images that the labels speak of, each once, with the boxes that people reviewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from animl_pipeline.core.category_names import is_person, is_vehicle
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.detections.detector import ANIMAL, Detection
from animl_pipeline.steps.detections.iou import SAME, Corners, overlap, same_objects
from animl_pipeline.storage.step_cache import Store

Image = tuple[str, str]
"""Source and id."""

HOUR = len("2024-01-02T03")


class LabelledImage(NamedTuple):
    """An image: its picture, where and when it was taken, and object id → reviewed box.

    ``occasion`` is its burst where the export knows bursts, else its hour, else itself.
    """

    blob: str
    file_name: str
    location: str
    occasion: str
    reviewed: dict[str, Corners]


def images_of(labels: pd.DataFrame) -> dict[Image, LabelledImage]:
    """The images of labels.parquet, by source and id."""
    rows = labels.drop_duplicates(["source", "image_id"]).sort_values(["source", "image_id"])
    reviewed = _reviewed_boxes(labels)
    columns = rows[["source", "image_id", "blob", "file_name", "location", "sequence", "taken"]]
    return {
        (source, image_id): LabelledImage(blob, file, location, sequence or taken[:HOUR] or image_id, reviewed.get((source, image_id), {}))
        for source, image_id, blob, file, location, sequence, taken in columns.itertuples(index=False, name=None)
    }


def shown_people(labels: Artifact, store: Store) -> set[Image]:
    """Images in which people labelled a person: mostly an object that the plan leaves out, in an image that stays for another one."""
    names = [n for n in ("labels.parquet", "dropped.parquet") if n in store.files(labels)]
    shown: set[Image] = set()
    for table in (store.table(labels, name) for name in names):
        rows = table[table["label"].map(is_person).astype(bool)]
        shown |= set(zip(rows["source"], rows["image_id"], strict=True))
    return shown


def _reviewed_boxes(labels: pd.DataFrame) -> dict[Image, dict[str, Corners]]:
    """Image → object id → box, of all images with at least one; persons and vehicles are no animals, whatever class a plan gives them."""
    boxes: dict[Image, dict[str, Corners]] = {}
    rows = labels[labels["ymin"].notna() & ~labels["label"].map(lambda name: is_person(name) or is_vehicle(name)).astype(bool)].sort_values(
        ["source", "image_id", "annotation_id"]
    )
    columns = rows[["source", "image_id", "annotation_id", "ymin", "xmin", "ymax", "xmax"]]
    for source, image_id, annotation_id, ymin, xmin, ymax, xmax in columns.itertuples(index=False, name=None):
        boxes.setdefault((source, image_id), {})[annotation_id] = (ymin, xmin, ymax, xmax)
    return boxes


NAN = float("nan")
COLUMNS = {
    "source": "str", "image_id": "str", "annotation_id": "str", "kind": "str", "overlap": "float64", "confidence": "float64",
    "ymin": "float64", "xmin": "float64", "ymax": "float64", "xmax": "float64",
}  # fmt: skip


class Disagreement(NamedTuple):
    """A reviewed box that the detector did not draw (``not_found``: of no other box's; ``drawn_otherwise``: it drew one that overlaps
    less than half), or an animal of the detector's where nobody reviewed one (``not_reviewed``). ``overlap`` is the best one there is.
    """

    annotation_id: str
    kind: str
    overlap: float
    confidence: float
    box: Corners


def disagreements(reviewed: Mapping[str, Corners], found: Sequence[Detection]) -> list[Disagreement]:
    """What differs between one picture's reviewed boxes and the detector's animals."""
    animals = [f for f in found if f.category == ANIMAL]
    matched = same_objects(reviewed, animals, ANIMAL)
    differ = []
    for annotation_id, box in reviewed.items():
        if annotation_id in matched.values():
            continue
        nearest = max(animals, key=lambda f: overlap(box, f[2:]), default=None)
        shared = overlap(box, nearest[2:]) if nearest else 0.0
        kind = "drawn_otherwise" if 0 < shared < SAME else "not_found"
        differ.append(Disagreement(annotation_id, kind, shared, nearest.confidence if nearest and shared else NAN, box))
    for index, animal in enumerate(animals):
        if index not in matched and all(overlap(box, animal[2:]) == 0 for box in reviewed.values()):
            differ.append(Disagreement("", "not_reviewed", 0.0, animal.confidence, animal[2:]))
    return differ
