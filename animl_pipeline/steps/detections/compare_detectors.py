"""Compare detectors on boxes that people reviewed and on images that they called empty."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.table_schemas import LABELS
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.box_overlap import iou
from animl_pipeline.steps.detections.choose_detector import ChosenDetector, choose_detector
from animl_pipeline.steps.detections.detector import Detection
from animl_pipeline.steps.detections.run_detector import run_detector
from animl_pipeline.storage.store import Store

FOUND_IOU = 0.5
"""A reviewed box is found if a detection overlaps it by this intersection over union, as in the score of production."""
SIZES = ((0.1, "small (below 0.1 of a side)"), (0.3, "medium (below 0.3)"), (0.8, "large (below 0.8)"), (np.inf, "fills the frame"))
"""Longer side of a box relative to the image's: upper limit, name."""
TIMED_IMAGES = 12
GREY_SPREAD = 4.0
"""An infrared image has no colour: the mean difference between its channels is below this, in grey levels (see score_crops)."""


class FoundBoxes(Record):
    """How many of some reviewed boxes a detector finds."""

    boxes: int
    found: int

    def recall(self) -> float | None:
        """The share that is found; None if there is no box."""
        return self.found / self.boxes if self.boxes else None


class DetectorScores(Record):
    """One detector at its confidence. ``by`` is slice → name → boxes: by size of the box, by light and by location."""

    name: str
    confidence: float
    all: FoundBoxes
    by: dict[str, dict[str, FoundBoxes]]
    mean_recall_of_locations: float | None
    empty_images: int
    empty_with_detection: int
    cpu_s_per_image: float

    def false_alarms_per_1000(self) -> float | None:
        """Empty images with a detection, of 1,000; None if there is no empty image."""
        return 1000 * self.empty_with_detection / self.empty_images if self.empty_images else None


class ReviewedImages(NamedTuple):
    """The reviewed boxes (rows of LABELS with ``size`` and ``light``), and the sha256 of the empty images."""

    boxes: pd.DataFrame
    empty: list[str]


def read_reviewed_images(labels: Artifact, empty_class: str, max_images: int, store: Store, settings: Settings) -> ReviewedImages:
    """The images that detectors are compared on: those whose boxes people reviewed, and empty ones.

    ``max_images``: at most so many images with boxes, in the order of a hash.

    Raises:
        DetectionsError: ``no_reviewed_box``: no image has a reviewed box.
    """
    table = store.table(labels, LABELS)
    empty = sorted(set(table.loc[table["class_id"] == empty_class, "blob"]))
    boxes = table[(table["class_id"] != empty_class) & table["ymin"].notna()].drop_duplicates(["blob", "ymin", "xmin", "ymax", "xmax"])
    without = set(table.loc[(table["class_id"] != empty_class) & table["ymin"].isna(), "blob"])
    blobs = sorted(set(boxes["blob"]) - without)[:max_images]  # sha256 of an image: a random order that stays
    if not blobs:
        message = "expected images with reviewed boxes of the plan's classes, found none; detectors cannot be compared without them"
        raise DetectionsError(message, code="no_reviewed_box")
    boxes = boxes[boxes["blob"].isin(blobs)].reset_index(drop=True)
    with ThreadPoolExecutor(settings.workers) as pool:
        light = dict(zip(blobs, pool.map(lambda blob: _light(store.blob(blob)), blobs), strict=True))
    longer = np.maximum((boxes["ymax"] - boxes["ymin"]).to_numpy(), (boxes["xmax"] - boxes["xmin"]).to_numpy())
    size = [next(name for limit, name in SIZES if side < limit) for side in longer]
    return ReviewedImages(boxes.assign(size=size, light=boxes["blob"].map(light)), empty)


def score_detector(images: ReviewedImages, config: DetectionsConfig, store: Store, settings: Settings) -> DetectorScores:
    """Score the detector of a plan's section. Detections that the store knows are reused; the time is measured on a few images again.

    Raises:
        DetectionsError, WeightsError: the detector cannot be loaded, or fails.
    """
    chosen = choose_detector(config, settings)
    blobs = sorted({*images.boxes["blob"], *images.empty})
    found = run_detector(blobs, chosen, config, store, settings)
    boxes = images.boxes.assign(found=_match(images.boxes, found))
    by = {key: {str(name): _count(rows) for name, rows in boxes.groupby(key)} for key in ("size", "light", "location")}
    by["size"] = {name: by["size"][name] for _, name in SIZES if name in by["size"]}
    recalls = [r for name, of in by["location"].items() if name and (r := of.recall()) is not None]
    return DetectorScores(
        name=" + ".join((chosen.name, *chosen.views)),
        confidence=chosen.confidence,
        all=_count(boxes),
        by=by,
        mean_recall_of_locations=float(np.mean(recalls)) if recalls else None,
        empty_images=len(images.empty),
        empty_with_detection=sum(bool(_animals(found[blob])) for blob in images.empty),
        cpu_s_per_image=_measure_time(blobs[:TIMED_IMAGES], chosen, store),
    )


def _light(data: bytes) -> str:
    image = open_image(data)
    image.thumbnail((160, 160))
    pixels = np.asarray(image, np.int16)
    return "infrared" if float((pixels.max(axis=2) - pixels.min(axis=2)).mean()) < GREY_SPREAD else "colour"


def _match(boxes: pd.DataFrame, found: dict[str, list[Detection] | str]) -> list[bool]:
    """Whether each reviewed box is found. A detection finds one box, the most confident detection first."""
    taken = pd.Series(data=False, index=boxes.index)
    for blob, rows in boxes.groupby("blob"):
        left = {i: box for i, *box in rows[["ymin", "xmin", "ymax", "xmax"]].itertuples()}
        for detection in _animals(found[str(blob)]):
            overlaps = {i: iou(detection[2:], box) for i, box in left.items()}
            best = max(overlaps, key=lambda i: overlaps[i], default=None)
            if best is not None and overlaps[best] >= FOUND_IOU:
                taken[best] = True
                del left[best]
    return taken.tolist()


def _animals(detections: list[Detection] | str) -> list[Detection]:
    return [] if isinstance(detections, str) else [d for d in detections if d.category == ANIMAL]


def _count(rows: pd.DataFrame) -> FoundBoxes:
    return FoundBoxes(boxes=len(rows), found=int(rows["found"].sum()))


def _measure_time(blobs: Sequence[str], chosen: ChosenDetector, store: Store) -> float:
    """CPU seconds of this process for an image, decoding included."""
    detector, data = chosen.load(), [store.blob(blob) for blob in blobs]
    detector.predict([detector.preprocess(data[0])])
    begun = time.process_time()
    for image in data:
        detector.predict([detector.preprocess(image)])
    return (time.process_time() - begun) / len(data)
