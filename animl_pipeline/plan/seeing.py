"""Where boxes come from, and which are cut out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from animl_pipeline.plan.fields import Count, Place
from animl_pipeline.records import Record


class DetectionsPlan(Record):
    """Where boxes come from, and which MegaDetector draws the missing ones."""

    source: Literal["annotations", "detector", "auto"] = Field(
        default="auto", description="reviewed boxes only; the detector only; reviewed boxes where there are any"
    )
    detector: Place = Field(
        default="megadetector-lite",
        description="megadetector-lite, or a checkpoint that ultralytics loads: a path, https://… or s3://…",
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the checkpoint; asked for when it is not a path")
    image_size: int = Field(default=640, ge=128, le=2048)
    confidence: float = Field(default=0.25, gt=0, lt=1, description="boxes below are not written")
    batch_size: Count = 8


class CropsPlan(Record):
    """Which boxes are cut out."""

    min_pixels: int = Field(default=8, ge=1, description="boxes whose longer side is below are left out")
    max_per_image_label: int = Field(default=5, ge=1, description="an image-level label goes to at most this many detector boxes, most certain first")
