"""The plan's sections `sources` and `images`: which exports to read, and where their images are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator

from animl_pipeline.config.lila_datasets import LILA, lila_dataset
from animl_pipeline.config.value_types_and_messages import Count, Name, PathOrUrl, shorten
from animl_pipeline.core.box_type import Frame
from animl_pipeline.core.frozen_record import Record

ImageFormat = Literal["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP"]
"""The names in ``core.image_structure.ALL_FORMATS``."""
Kind = Literal["auto", "animl", "cct", "lila", "folders", "camtrap-dp", "megadetector"]
ANIML = "animl://"
FILE_SUFFIXES = (".json", ".gz", ".zip")
"""An export whose name ends so is one file; other paths are folders."""


class AnimlExportConfig(Record):
    """Which images of an Animl project to export. Times without a zone are UTC."""

    created_from: datetime | None = Field(default=None, description="first capture time, inclusive")
    created_to: datetime | None = Field(default=None, description="last capture time, exclusive")
    cameras: tuple[str, ...] = Field(default=(), description="camera ids; empty: all")
    deployments: tuple[str, ...] = Field(default=(), description="deployment ids; empty: all")
    labels: tuple[str, ...] = Field(default=(), description="ids of the project's labels; empty: all")
    only_reviewed: bool = Field(default=True, description="only images that people have reviewed")
    window_images: int = Field(default=15_000, ge=1, le=18_000, description="images in one export at most; Animl may cut off larger ones")
    timeout_s: float = Field(
        default=1000, gt=0, le=86_400, description="seconds that Animl may take for one export; one that has died at its limit of 900 s never ends"
    )
    full_after_days: float = Field(
        default=30,
        ge=0,
        le=10_000,
        description="export everything again when the last full export is older; only this finds deleted images and objects, moved boxes "
        "and changed deployments",
    )

    @field_validator("cameras", "deployments", "labels", mode="before")
    @classmethod
    def _ids_in_quotes(cls, value: Any) -> Any:
        """YAML reads 1001 as a number, 0101 as 65, and 2020-10-15 as a date, so that the id is lost."""
        for found in value if isinstance(value, (list, tuple)) else ():
            if not isinstance(found, str):
                raise ValueError(f"expected ids in quotes, found {shorten(str(found))} without; write it as '…' in the plan")
        return value

    @model_validator(mode="after")
    def _start_before_end(self) -> Self:
        first, last = (t.replace(tzinfo=UTC) if t is not None and t.tzinfo is None else t for t in (self.created_from, self.created_to))
        if first is not None and last is not None and first >= last:
            raise ValueError(f"created_from ({self.created_from}) is not before created_to ({self.created_to}), so there are no images between them")
        return self


class MegadetectorConfig(Record):
    """From which confidence on a detector's results count."""

    confidence: float = Field(default=0.2, gt=0, lt=1, description="boxes below are dropped; an image without a box above is empty")
    classification: float = Field(default=0.5, gt=0, lt=1, description="a box whose best class is below is an animal without a label")


class SourceConfig(Record):
    """One export and its images."""

    name: Name = Field(description="a short name of your choice")
    kind: Kind = Field(default="auto", description="format of the labels; auto: recognise it")
    export: PathOrUrl = Field(
        description="a file (COCO for Camera Traps, MegaDetector's JSON), a folder of images, a Camtrap DP, as a path, https://… or "
        "s3://…; or animl://<project id>; or lila://<data set>"
    )
    images: PathOrUrl = Field(description="a folder, an https base address, or s3://bucket[/prefix]; leave it out where the export names it")
    path_field: Literal["file_name", "serving_bucket_key"] = Field(
        default="file_name", description="field of an image that holds its path below `images`"
    )
    location_field: str = Field(default="location", description="field of an image (Camtrap DP: of a deployment) that names the location")
    layout: str | None = Field(default=None, description="for folders and megadetector: what the folders of an image's path mean")
    box_frame: Frame = Field(
        default="auto",
        description="which way up images are for the export's boxes: stored (EXIF orientation is ignored, as Animl does), or shown (images are "
        "turned by it, as viewers do); auto: the sizes in the export say it, else stored, but shown for relative boxes",
    )
    unreviewed: Literal["drop", "keep"] = Field(default="drop", description="annotations that are not validated")
    location_namespace: Name | None = Field(
        default=None, description="sources with the same namespace share their locations; null: the source's name, so it shares none"
    )
    merge_locations_within_m: float | None = Field(
        default=10.0, gt=0, le=10_000, description="deployments with coordinates this near are one location; null: never merge"
    )
    max_images: Count | None = Field(default=None, description="at most this many images of this source")
    max_per_location: Count | None = Field(default=None, description="at most this many images of one location of this source")
    animl: AnimlExportConfig | None = Field(default=None, description="for animl://: what to export")
    megadetector: MegadetectorConfig | None = Field(default=None, description="for MegaDetector's JSON: confidence limits")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_images(cls, data: Any) -> Any:
        """Some exports say where their images are."""
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        if filled.get("images") is None and isinstance(filled.get("export"), str):
            known = _images_of(filled["export"], str(filled.get("kind", "auto")))
            filled |= {"images": known} if known else {}
        return filled

    @field_validator("layout")
    @classmethod
    def _check_layout(cls, value: str | None) -> str | None:
        parts = value.split("/") if value is not None else []
        if any(p not in {"{label}", "{location}", "*"} for p in parts) or any(parts.count(p) > 1 for p in ("{label}", "{location}")):
            raise ValueError(f"expected {{label}}, {{location}} (each at most once) or * for each folder level, separated by /, found {value!r}")
        return value

    @model_validator(mode="after")
    def _kind_fits_export(self) -> Self:
        for scheme, kind in ((ANIML, "animl"), (LILA, "lila")):
            if self.export.startswith(scheme) != (self.kind == kind) and self.kind != "auto":
                raise ValueError(f"kind: {self.kind} does not fit export: {self.export!r}; {kind} goes with {scheme}…, and nothing else does")
        project = self.project()
        if project is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", project):
            raise ValueError("export: expected animl://<project id>, an id of letters, digits, '_' and '-'; user and address are settings")
        if self.animl is not None and project is None:
            raise ValueError(f"animl: sets what to export from Animl, but export names a file; expected animl://<project id>, found {self.export!r}")
        if self.export.startswith(LILA):
            lila_dataset(self.export)
        if self.kind == "folders" and self.layout is not None and "{label}" not in self.layout:
            raise ValueError(f"layout: {self.layout!r} does not say which folder is the label; for kind folders it needs {{label}}")
        if self.layout is not None and self.kind not in {"auto", "folders", "megadetector"}:
            raise ValueError(f"layout: describes folders of images, which kind {self.kind} does not use")
        return self

    def project(self) -> str | None:
        """The Animl project to export, None where the export is a file."""
        return self.export.removeprefix(ANIML) if self.export.startswith(ANIML) else None

    def namespace(self) -> str:
        """What precedes the names of the source's locations."""
        return self.location_namespace or self.name


def is_file(export: str) -> bool:
    """Whether a path or address names one file and not a folder, by its suffix; a query after ``?`` does not count."""
    return (export.partition("?")[0] if "://" in export else export).lower().endswith(FILE_SUFFIXES)


def _images_of(export: str, kind: str) -> str | None:
    """Where the images of an export are, if the export itself says so."""
    if export.startswith(LILA):
        return export
    if kind in {"auto", "camtrap-dp"} and export.rpartition("/")[2] == "datapackage.json":
        return export.rpartition("/")[0] or "."
    if not export.startswith(ANIML) and kind in {"auto", "folders", "camtrap-dp"} and not is_file(export):
        return export
    return None


class ImagesConfig(Record):
    """How images are downloaded. Another value changes no image."""

    max_disk: ByteSize | None = Field(
        default=None, gt=0, description="the store may grow to this size, such as 500 GB; images beyond it are not downloaded"
    )
    formats: tuple[ImageFormat, ...] = Field(
        default=("JPEG", "PNG"),
        min_length=1,
        description="formats of images to download: JPEG, PNG, and if you need them BMP, GIF, PPM, TIFF, WEBP; other images are left out",
    )
