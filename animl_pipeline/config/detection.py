"""Where boxes come from, and which are cut out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.config.fields import Count, PathOrUrl
from animl_pipeline.core.records import Record


class DetectionsConfig(Record):
    """Where boxes come from, and which MegaDetector draws the missing ones."""

    source: Literal["annotations", "detector", "auto", "results"] = Field(
        default="auto",
        description="reviewed boxes only; the detector only; reviewed boxes where there are any; the same with another tool's boxes",
    )
    detector: PathOrUrl = Field(
        default="megadetector-lite",
        description="a name of `animl-pipeline weights list`, a checkpoint (a path, https://… or s3://…), or sagemaker:<endpoint>",
    )
    family: Literal["auto", "ultralytics", "yolov5"] = Field(default="auto", description="of a checkpoint without a name of its own")
    results: PathOrUrl | None = Field(
        default=None, description="for source: results: a MegaDetector batch results file (a path, https://… or s3://…)"
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the checkpoint; asked for when it is not a path")
    image_size: int | None = Field(default=None, ge=128, le=2048, description="longer side that the network sees; null: what it was trained for")
    confidence: float | None = Field(default=None, gt=0, lt=1, description="boxes below are not written; null: what the detector's maker advises")
    batch_size: Count = Field(default=32, description="pictures between two notes of what was seen, and in one go on a GPU")
    people: Literal["keep", "drop"] = Field(default="keep", description="pictures with a person: kept, without the person, or left out")
    repeat_min_occasions: int | None = Field(
        default=10, ge=2, description="a detector's box at the same spot of a place on so many occasions is a stone, no animal; null: never"
    )
    repeat_iou: float = Field(default=0.9, gt=0.5, le=1, description="intersection over union from which two boxes are at the same spot")

    @model_validator(mode="after")
    def _results_have_a_file(self) -> Self:
        if (self.source == "results") != (self.results is not None):
            raise ValueError("results: expected a MegaDetector results file with source: results, and none with any other source")
        return self


class CropsConfig(Record):
    """Which boxes are cut out."""

    min_pixels: int = Field(default=8, ge=1, description="boxes whose longer side is below are left out")
    image_level_label: Literal["all", "most_certain", "leave_out"] = Field(
        default="all", description="an image's label and several boxes: all get it, the most certain one does, or none"
    )
    max_per_image_level_label: int = Field(
        default=5, ge=1, description="an image-level label goes to at most this many detector boxes, most certain first"
    )
