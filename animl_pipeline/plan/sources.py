"""Where labels and pictures come from."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.plan.fields import Name, Place
from animl_pipeline.records import Record


class AnimlPlan(Record):
    """Which images of an Animl project are exported, and how. Times without a zone are UTC."""

    created_from: datetime | None = Field(default=None, description="capture time, inclusive")
    created_to: datetime | None = Field(default=None, description="capture time, exclusive")
    cameras: tuple[str, ...] = Field(default=(), description="camera ids; none: all")
    deployments: tuple[str, ...] = Field(default=(), description="deployment ids; none: all")
    labels: tuple[str, ...] = Field(default=(), description="ids of the project's labels; none: all")
    only_reviewed: bool = Field(default=True, description="only images that people have reviewed")
    window_images: int = Field(default=15_000, ge=1, le=18_000, description="images an export at most; Animl's larger ones can be cut off")
    timeout_s: float = Field(default=3600, gt=0, le=86_400, description="seconds that Animl may take to make one export")
    full_after_days: float = Field(
        default=30,
        ge=0,
        le=10_000,
        description="ask only for what is new until the last whole export is so old (it finds deletions)",
    )
    merge_places_within_m: float | None = Field(default=10.0, gt=0, le=10_000, description="camera deployments so near are one place; null: never")


class SourcePlan(Record):
    """One export and where its pictures lie."""

    name: Name = Field(description="a short name; also the name space of the source's places")
    export: Place = Field(description="COCO for Camera Traps file: a path, https://… or s3://bucket/key; or animl://<project id>")
    images: Place = Field(description="a folder, an https base address, or s3://bucket[/prefix]")
    key: Literal["file_name", "serving_bucket_key"] = Field(default="file_name", description="which field of an image is its path below `images`")
    place_field: str = Field(default="location", description="which field of an image says where it was taken")
    unreviewed: Literal["drop", "keep"] = Field(default="drop", description="objects that no person validated")
    animl: AnimlPlan | None = Field(default=None, description="for animl://: what to export")

    @model_validator(mode="after")
    def _animl_is_asked_by_project(self) -> Self:
        project = self.project()
        if project is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", project):
            raise ValueError("export: expected animl://<project id>, an id of letters, digits, '_' and '-'; who asks, and where, are settings")
        if self.animl is not None and project is None:
            raise ValueError(f"animl: says what to export from Animl, but export names a file; expected animl://<project id>, found {self.export!r}")
        return self

    def project(self) -> str | None:
        """The Animl project that is asked for its export, None where the export is a file."""
        return self.export.removeprefix("animl://") if self.export.startswith("animl://") else None
