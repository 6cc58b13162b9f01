"""The labelled images with the boxes that people reviewed."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.box_type import BoxTuple
from animl_pipeline.core.category_names import is_person, is_vehicle
from animl_pipeline.core.table_schemas import DROPPED_ANNOTATIONS, LABELS
from animl_pipeline.storage.store import Store

ImageKey = tuple[str, str]
"""Source and image id."""
HOUR = len("2024-01-02T03")


class LabelledImage(NamedTuple):
    """An image with labels.

    Attributes:
        blob: sha256 of the file.
        file_name: its name in the export.
        location: where the camera was; empty where unknown.
        occasion: the sequence; the hour where the export has no sequences; empty where it has no time either.
        width, height: size of the file in pixels, as stored.
        orientation: its EXIF orientation, 1 to 8.
        reviewed: annotation id → box that a person reviewed.
    """

    blob: str
    file_name: str
    location: str
    occasion: str
    width: int
    height: int
    orientation: int
    reviewed: dict[str, BoxTuple]


def read_labelled_images(labels: Artifact, store: Store) -> dict[ImageKey, LabelledImage]:
    """The images of labels.parquet, sorted by source and image id."""
    table = store.table(labels, LABELS)
    reviewed = _reviewed_boxes(table)
    rows = table.drop_duplicates(["source", "image_id"]).sort_values(["source", "image_id"])
    columns = rows[["source", "image_id", "blob", "file_name", "location", "sequence", "taken", "width", "height", "orientation"]]
    return {
        (source, image_id): LabelledImage(
            blob, file, location, sequence or taken[:HOUR], width, height, max(orientation, 1), reviewed.get((source, image_id), {})
        )
        for source, image_id, blob, file, location, sequence, taken, width, height, orientation in columns.itertuples(index=False, name=None)
    }


def images_of_class(class_id: str, labels: Artifact, store: Store) -> set[ImageKey]:
    """The images with a label of this class."""
    rows = store.table(labels, LABELS, ["source", "image_id", "class_id"])
    rows = rows[rows["class_id"] == class_id]
    return set(zip(rows["source"], rows["image_id"], strict=True))


def images_labelled_person(labels: Artifact, store: Store) -> set[ImageKey]:
    """Images in which people labelled a person. The plan mostly drops this label and keeps the image for another label."""
    images: set[ImageKey] = set()
    for table in (LABELS, DROPPED_ANNOTATIONS):
        rows = store.table(labels, table, ["source", "image_id", "label"])
        people = rows[rows["label"].map(is_person).astype(bool)]
        images |= set(zip(people["source"], people["image_id"], strict=True))
    return images


def _reviewed_boxes(table: pd.DataFrame) -> dict[ImageKey, dict[str, BoxTuple]]:
    """Image → annotation id → box. People and vehicles are left out, because they are no animals, whatever class the plan gives them."""
    no_animal = table["label"].map(lambda label: is_person(label) or is_vehicle(label)).astype(bool)
    rows = table[table["ymin"].notna() & ~no_animal].sort_values(["source", "image_id", "annotation_id"])
    columns = rows[["source", "image_id", "annotation_id", "ymin", "xmin", "ymax", "xmax"]]
    boxes: dict[ImageKey, dict[str, BoxTuple]] = {}
    for source, image_id, annotation_id, ymin, xmin, ymax, xmax in columns.itertuples(index=False, name=None):
        boxes.setdefault((source, image_id), {})[annotation_id] = (ymin, xmin, ymax, xmax)
    return boxes
