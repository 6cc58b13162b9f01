"""The labelled images with the boxes that people reviewed, and the comparison of reviewed boxes with detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.boxes import BoxTuple
from animl_pipeline.core.non_animal_names import is_person, is_vehicle
from animl_pipeline.core.table_schemas import DROPPED_ANNOTATIONS, LABELS
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.box_overlap import iou
from animl_pipeline.steps.detections.detector import Detection
from animl_pipeline.storage.step_cache import Store

ImageKey = tuple[str, str]
"""Source and image id."""
HOUR = len("2024-01-02T03")
MIN_IOU = 0.5
"""From this intersection over union on, two boxes are of the same animal (as in PASCAL VOC)."""
NAN = float("nan")


class LabelledImage(NamedTuple):
    """An image with labels.

    Attributes:
        blob: sha256 of the file.
        file_name: its name in the export.
        location: where the camera was; empty where unknown.
        occasion: the sequence; the hour where the export has no sequences; the image itself where it has no time.
        reviewed: annotation id → box that a person reviewed.
    """

    blob: str
    file_name: str
    location: str
    occasion: str
    reviewed: dict[str, BoxTuple]


def read_labelled_images(labels: Artifact, store: Store) -> dict[ImageKey, LabelledImage]:
    """The images of labels.parquet, sorted by source and image id."""
    table = store.table(labels, LABELS)
    reviewed = _reviewed_boxes(table)
    rows = table.drop_duplicates(["source", "image_id"]).sort_values(["source", "image_id"])
    columns = rows[["source", "image_id", "blob", "file_name", "location", "sequence", "taken"]]
    return {
        (source, image_id): LabelledImage(blob, file, location, sequence or taken[:HOUR] or image_id, reviewed.get((source, image_id), {}))
        for source, image_id, blob, file, location, sequence, taken in columns.itertuples(index=False, name=None)
    }


def images_labelled_person(labels: Artifact, store: Store) -> set[ImageKey]:
    """Images in which people labelled a person. The plan mostly drops this label and keeps the image for another label."""
    images: set[ImageKey] = set()
    for table in (LABELS, DROPPED_ANNOTATIONS):
        rows = store.table(labels, table, ["source", "image_id", "label"])
        people = rows[rows["label"].map(is_person).astype(bool)]
        images |= set(zip(people["source"], people["image_id"], strict=True))
    return images


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


def _reviewed_boxes(table: pd.DataFrame) -> dict[ImageKey, dict[str, BoxTuple]]:
    """Image → annotation id → box. People and vehicles are left out, because they are no animals, whatever class the plan gives them."""
    no_animal = table["label"].map(lambda label: is_person(label) or is_vehicle(label)).astype(bool)
    rows = table[table["ymin"].notna() & ~no_animal].sort_values(["source", "image_id", "annotation_id"])
    columns = rows[["source", "image_id", "annotation_id", "ymin", "xmin", "ymax", "xmax"]]
    boxes: dict[ImageKey, dict[str, BoxTuple]] = {}
    for source, image_id, annotation_id, ymin, xmin, ymax, xmax in columns.itertuples(index=False, name=None):
        boxes.setdefault((source, image_id), {})[annotation_id] = (ymin, xmin, ymax, xmax)
    return boxes
