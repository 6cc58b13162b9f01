"""The images that the labels speak of, each once, with the boxes that people reviewed."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from animl_pipeline.detections.matching import Corners
from animl_pipeline.plan.seeing import PEOPLE, VEHICLES, folded
from animl_pipeline.records import Artifact
from animl_pipeline.store import Store

Image = tuple[str, str]
"""Source and id."""

HOUR = len("2024-01-02T03")


class LabelledImage(NamedTuple):
    """An image: its picture, where and when it was taken, and object id → reviewed box.

    ``occasion`` is its burst where the export knows bursts, else its hour, else itself.
    """

    blob: str
    file_name: str
    place: str
    occasion: str
    reviewed: dict[str, Corners]


def images_of(labels: pd.DataFrame) -> dict[Image, LabelledImage]:
    """The images of labels.parquet, by source and id."""
    rows = labels.drop_duplicates(["source", "image_id"]).sort_values(["source", "image_id"])
    reviewed = _reviewed_boxes(labels)
    columns = rows[["source", "image_id", "blob", "file_name", "place", "sequence", "taken"]]
    return {
        (source, image_id): LabelledImage(blob, file, place, sequence or taken[:HOUR] or image_id, reviewed.get((source, image_id), {}))
        for source, image_id, blob, file, place, sequence, taken in columns.itertuples(index=False, name=None)
    }


def shown_people(labels: Artifact, store: Store) -> set[Image]:
    """Images in which people labelled a person: mostly an object that the plan leaves out, in an image that stays for another one."""
    names = [n for n in ("labels.parquet", "dropped.parquet") if n in store.files(labels)]
    shown: set[Image] = set()
    for table in (store.table(labels, name) for name in names):
        rows = table[table["name"].map(folded).isin(PEOPLE)]
        shown |= set(zip(rows["source"], rows["image_id"], strict=True))
    return shown


def _reviewed_boxes(labels: pd.DataFrame) -> dict[Image, dict[str, Corners]]:
    """Image → object id → box, of all images with at least one; persons and vehicles are no animals, whatever class a plan gives them."""
    boxes: dict[Image, dict[str, Corners]] = {}
    rows = labels[labels["ymin"].notna() & ~labels["name"].map(folded).isin(PEOPLE | VEHICLES)].sort_values(["source", "image_id", "object_id"])
    columns = rows[["source", "image_id", "object_id", "ymin", "xmin", "ymax", "xmax"]]
    for source, image_id, object_id, ymin, xmin, ymax, xmax in columns.itertuples(index=False, name=None):
        boxes.setdefault((source, image_id), {})[object_id] = (ymin, xmin, ymax, xmax)
    return boxes
