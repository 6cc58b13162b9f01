"""The step: which boxes of which images, reviewed ones or the detector's, as one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.detections.batch_file import batch_file
from animl_pipeline.detections.detector import ANIMAL, Found
from animl_pipeline.detections.families import Choice, choose_detector
from animl_pipeline.detections.looking import look_at
from animl_pipeline.detections.matching import Corners, same_objects
from animl_pipeline.plan import DetectionsPlan
from animl_pipeline.records import Artifact, Counts
from animl_pipeline.settings import Settings
from animl_pipeline.store import Made, Store, Workspace, write_table

NO_BOX = "no_box"
COLUMNS = {
    "source": "str", "image_id": "str", "blob": "str", "object_id": "str", "origin": "str", "category": "str",
    "confidence": "float64", "ymin": "float64", "xmin": "float64", "ymax": "float64", "xmax": "float64",
}  # fmt: skip
FAILURE_COLUMNS = {"source": "str", "image_id": "str", "reason": "str"}

Image = tuple[str, str]
"""Source and id."""


class Seen(NamedTuple):
    """An image's boxes with the reviewed object that each one is ("" for none), or the reason for having none."""

    origin: str
    found: list[Found] | str
    object_ids: list[str]


def detect_animals(labels: Artifact, spec: DetectionsPlan, store: Store, settings: Settings) -> Artifact:
    """The animals' boxes in the labels' images: detections.parquet, failures.parquet and megadetector.json.

    Args:
        labels: the step that gave every object its class.
        spec: whose boxes count, and which detector draws the missing ones.
        store: holds the pictures; remembers per picture what the detector saw in it.
        settings: the cache of weights, and how many pictures are decoded at a time.

    Raises:
        WeightsError: the detector's weights cannot be had.
        DetectionsError: they are not of a detector that finds animals.
    """
    choice = None if spec.source == "annotations" else choose_detector(spec, settings)
    config: dict[str, Any] = {"source": spec.source}
    if choice is not None:
        config |= {"recipe": choice.recipe, "image_size": spec.image_size, "confidence": spec.confidence}
    return store.make(
        "detections",
        room="detections",
        inputs={"labels": labels},
        digests={} if choice is None else {"detector": choice.sha256},
        config=config,
        build=lambda space: _build(space, store.table(labels, "labels.parquet"), choice, spec, store, settings),
    )


def _build(space: Workspace, labels: pd.DataFrame, choice: Choice | None, spec: DetectionsPlan, store: Store, settings: Settings) -> Made:
    images = labels.drop_duplicates(["source", "image_id"]).sort_values(["source", "image_id"])
    blobs: dict[Image, str] = dict(zip(_keys(images), images["blob"], strict=True))
    reviewed = _reviewed_boxes(labels)
    asked = sorted({blob for image, blob in blobs.items() if spec.source == "detector" or image not in reviewed}) if choice else []
    looked = look_at(asked, choice, spec, store, settings) if choice else {}
    seen = {image: _seen(reviewed.get(image, {}), looked.get(blob), spec) for image, blob in blobs.items()}

    write_table(space.out / "detections.parquet", _table(_rows(seen, blobs), COLUMNS))
    failed = [(*image, s.found) for image, s in seen.items() if isinstance(s.found, str)]
    write_table(space.out / "failures.parquet", _table(failed, FAILURE_COLUMNS))
    files = {image: f"{image[0]}/{name}" for image, name in zip(_keys(images), images["file_name"], strict=True)}
    text = batch_file(choice.name if choice else "annotations", ((files[image], s.found) for image, s in seen.items()))
    (space.out / "megadetector.json").write_text(text, encoding="utf-8")
    return Made(_counts(seen))


def _reviewed_boxes(labels: pd.DataFrame) -> dict[Image, dict[str, Corners]]:
    """Image → object id → box, of all images with at least one."""
    boxes: dict[Image, dict[str, Corners]] = {}
    rows = labels[labels["ymin"].notna()].sort_values(["source", "image_id", "object_id"])
    corners = rows[["ymin", "xmin", "ymax", "xmax"]].itertuples(index=False, name=None)
    for image, object_id, (ymin, xmin, ymax, xmax) in zip(_keys(rows), rows["object_id"], corners, strict=True):
        boxes.setdefault(image, {})[object_id] = (ymin, xmin, ymax, xmax)
    return boxes


def _keys(rows: pd.DataFrame) -> list[Image]:
    return list(zip(rows["source"], rows["image_id"], strict=True))


def _seen(reviewed: Mapping[str, Corners], looked: list[Found] | str | None, spec: DetectionsPlan) -> Seen:
    """One image's boxes: the reviewed ones where the plan wants them and there are any, else the detector's."""
    if spec.source != "detector" and reviewed:
        return Seen("annotation", [Found(ANIMAL, 1.0, *corners) for corners in reviewed.values()], list(reviewed))
    if looked is None:
        return Seen("annotation", NO_BOX, [])
    if isinstance(looked, str):
        return Seen("detector", looked, [])
    matched = same_objects(reviewed, looked, ANIMAL)
    return Seen("detector", looked, [matched.get(i, "") for i in range(len(looked))])


def _rows(seen: Mapping[Image, Seen], blobs: Mapping[Image, str]) -> list[tuple[Any, ...]]:
    return [
        (*image, blobs[image], object_id, s.origin, *found)
        for image, s in seen.items()
        if not isinstance(s.found, str)
        for object_id, found in zip(s.object_ids, s.found, strict=True)
    ]


def _table(rows: list[tuple[Any, ...]], columns: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(dict(columns))


def _counts(seen: Mapping[Image, Seen]) -> Counts:
    """Images with an answer, images without one by reason, and how many boxes came from whom."""
    dropped = Counter(s.found for s in seen.values() if isinstance(s.found, str))
    noted: Counter[str] = Counter()
    for s in seen.values():
        if not isinstance(s.found, str):
            noted[f"{s.origin}_boxes"] += len(s.found)
            noted["images_without_animal"] += not any(f.category == ANIMAL for f in s.found)
    return Counts(kept=len(seen) - sum(dropped.values()), dropped=dict(dropped), noted={k: n for k, n in noted.items() if n}, unit="images")
