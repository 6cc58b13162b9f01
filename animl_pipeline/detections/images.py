"""The images that the labels speak of, each once, with the boxes that people reviewed."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from animl_pipeline.detections.matching import Corners
from animl_pipeline.records import Artifact
from animl_pipeline.store import Store

Image = tuple[str, str]
"""Source and id."""

PEOPLE = frozenset({"person", "persons", "people", "human", "humans"})
"""Category names, folded, of objects that are persons."""

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
    """Images in which people labelled a person: an object that the plan leaves out, in an image that stays for another one."""
    if "dropped.parquet" not in store.files(labels):
        return set()
    dropped = store.table(labels, "dropped.parquet")
    rows = dropped[dropped["name"].astype("str").str.casefold().isin(PEOPLE)]
    return set(zip(rows["source"], rows["image_id"], strict=True))


def _reviewed_boxes(labels: pd.DataFrame) -> dict[Image, dict[str, Corners]]:
    """Image → object id → box, of all images with at least one."""
    boxes: dict[Image, dict[str, Corners]] = {}
    rows = labels[labels["ymin"].notna()].sort_values(["source", "image_id", "object_id"])
    columns = rows[["source", "image_id", "object_id", "ymin", "xmin", "ymax", "xmax"]]
    for source, image_id, object_id, ymin, xmin, ymax, xmax in columns.itertuples(index=False, name=None):
        boxes.setdefault((source, image_id), {})[object_id] = (ymin, xmin, ymax, xmax)
    return boxes
