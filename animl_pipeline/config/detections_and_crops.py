"""The sections ``detections`` and ``crops`` of a plan: where boxes come from, and which of them become crops."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.config.value_types_and_messages import Count, PathOrUrl
from animl_pipeline.core.box_type import Frame
from animl_pipeline.core.frozen_record import Record

DetectorView = Literal["mirror", "gamma", "half_size"]
"""Another view of an image in which a detector also looks (test-time augmentation)."""


class DetectionsConfig(Record):
    """Where boxes come from, and which detector finds the missing ones."""

    source: Literal["annotations", "detector", "auto", "results"] = Field(
        default="auto",
        description="annotations: reviewed boxes only; detector: its boxes only; auto: reviewed boxes, and the detector for images without any; "
        "results: as auto, with the boxes of a results file instead of a detector's",
    )
    detector: PathOrUrl = Field(
        default="megadetector-lite",
        description="a name of `animl-pipeline weights list`, a checkpoint (a path, https://… or s3://…), or sagemaker:<endpoint>",
    )
    family: Literal["auto", "ultralytics", "yolov5"] = Field(default="auto", description="of a checkpoint that is not a known name")
    results: PathOrUrl | None = Field(
        default=None, description="for source: results: a MegaDetector batch results file (a path, https://… or s3://…)"
    )
    results_folders: dict[str, str] = Field(
        default={},
        description="for source: results: source → the folder in the results file where its images begin, where their paths do not show it",
    )
    results_frame: Frame = Field(
        default="auto",
        description="for source: results: shown if the tool turns images by their EXIF orientation, stored if it does not (PytorchWildlife); auto: "
        "sizes in the file say it, else shown for rotated images, as MegaDetector does it",
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the checkpoint; required for a URL and for a YOLOv5 checkpoint"
    )
    image_size: int | None = Field(
        default=None, ge=128, le=2048, description="longer side of the detector's input in pixels; null: the size that it was trained for"
    )
    views: tuple[DetectorView, ...] = Field(
        default=(),
        exclude_if=lambda value: not value,  # a plan without it is recorded, and gives keys, as if there were no such key
        description="megadetector-lite only: other views of each image in which it also looks, for so many times the time: mirror, gamma (brighter), "
        "half_size (for animals that fill the frame)",
    )
    confidence: float | None = Field(
        default=None, gt=0, lt=1, description="boxes below this confidence are dropped; null: the value that the detector's authors advise"
    )
    batch_size: Count = Field(default=32, description="images between two writes of results to the store, and in one batch on a GPU")
    images_with_people: Literal["keep", "drop"] = Field(
        default="keep", description="keep: use the animals in them, never the people; drop: use nothing of these images"
    )
    repeat_min_occasions: int | None = Field(
        default=10,
        ge=2,
        description="a detector's box in the same position at the same location on so many occasions is a repeat detection (such as a stone) "
        "and is not used; null: use all boxes",
    )
    repeat_iou: float = Field(default=0.9, gt=0.5, le=1, description="intersection over union from which two boxes have the same position")

    @model_validator(mode="after")
    def _check_results(self) -> Self:
        if (self.source == "results") != (self.results is not None):
            raise ValueError("results: expected a MegaDetector results file with source: results, and none with any other source")
        if len(set(self.views)) < len(self.views):
            raise ValueError("views: expected each view once")
        return self


class CropsConfig(Record):
    """Which boxes become crops."""

    min_pixels: int = Field(default=8, ge=1, description="boxes whose longer side is shorter than this are dropped")
    image_level_label: Literal["all", "highest_confidence", "drop_image"] = Field(
        default="all",
        description="where an image has one label without a box and several detector boxes: all boxes get the label, only the one with the "
        "highest confidence does, or none",
    )
    max_per_image_level_label: int = Field(
        default=5, ge=1, description="a label without a box goes to at most this many detector boxes, highest confidence first"
    )
