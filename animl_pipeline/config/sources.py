"""Where labels and pictures come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator

from animl_pipeline.config.fields import Count, Name, PathOrUrl
from animl_pipeline.config.lila_datasets import LILA, lila_set
from animl_pipeline.core.records import Record

Kind = Literal["auto", "animl", "cct", "lila", "folders", "camtrap-dp", "megadetector"]
ANIML = "animl://"
FILES = (".json", ".gz", ".zip")
"""How the names of exports end that are a file; other paths are folders."""


class AnimlExportConfig(Record):
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

    @model_validator(mode="after")
    def _time_goes_on(self) -> Self:
        first, last = (t.replace(tzinfo=UTC) if t is not None and t.tzinfo is None else t for t in (self.created_from, self.created_to))
        if first is not None and last is not None and first >= last:
            raise ValueError(f"created_from ({self.created_from}) is not before created_to ({self.created_to}): no image lies between them")
        return self


class MegadetectorConfig(Record):
    """What of a machine's answers counts as found, and as named."""

    confidence: float = Field(default=0.2, gt=0, lt=1, description="boxes below are left out; a picture without one above is empty")
    classification: float = Field(default=0.5, gt=0, lt=1, description="a box whose best class is below is an animal without a name")


class SourceConfig(Record):
    """One export and where its pictures lie."""

    name: Name = Field(description="a short name; also the name space of the source's places, unless `location_namespace` names another")
    kind: Kind = Field(default="auto", description="how the labels are written; auto: what the export looks like")
    export: PathOrUrl = Field(
        description="a file (COCO for Camera Traps, MegaDetector's JSON), a folder of pictures, a Camtrap DP, as a path, https://… or "
        "s3://…; or animl://<project id>; or lila://<set>"
    )
    images: PathOrUrl = Field(description="a folder, an https base address, or s3://bucket[/prefix]; left out where the export says it")
    key: Literal["file_name", "serving_bucket_key"] = Field(default="file_name", description="which field of an image is its path below `images`")
    location_field: str = Field(default="location", description="which field of an image (Camtrap DP: of a deployment) says where it was taken")
    layout: str | None = Field(default=None, description="folders, megadetector: what the folders of a picture's path mean")
    unreviewed: Literal["drop", "keep"] = Field(default="drop", description="objects that no person validated")
    location_namespace: Name | None = Field(default=None, description="name space of the places; sources that share one share places")
    merge_locations_within_m: float | None = Field(
        default=10.0, gt=0, le=10_000, description="deployments with coordinates so near are one place; null: never"
    )
    max_images: Count | None = Field(default=None, description="at most so many pictures of this source")
    max_per_location: Count | None = Field(default=None, description="at most so many pictures of one place of it")
    animl: AnimlExportConfig | None = Field(default=None, description="for animl://: what to export")
    megadetector: MegadetectorConfig | None = Field(default=None, description="for MegaDetector's JSON: what counts")

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, data: Any) -> Any:
        """Pictures lie where the export says, where it does; `merge_locations_within_m` may still stand below `animl`, as it once did."""
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        if filled.get("images") is None and isinstance(filled.get("export"), str):
            beside = _images_of(filled["export"], str(filled.get("kind", "auto")))
            filled |= {"images": beside} if beside else {}
        animl = filled.get("animl")
        if isinstance(animl, Mapping) and "merge_locations_within_m" in animl and "merge_locations_within_m" not in filled:
            filled["animl"] = {k: v for k, v in animl.items() if k != "merge_locations_within_m"}
            filled["merge_locations_within_m"] = animl["merge_locations_within_m"]
        return filled

    @field_validator("layout")
    @classmethod
    def _names_levels(cls, value: str | None) -> str | None:
        parts = value.split("/") if value is not None else []
        if any(p not in {"{label}", "{location}", "*"} for p in parts) or any(parts.count(p) > 1 for p in ("{label}", "{location}")):
            raise ValueError(f"expected {{label}}, {{location}} (each at most once) or * for each folder level, with / between, found {value!r}")
        return value

    @model_validator(mode="after")
    def _kind_and_export_agree(self) -> Self:
        for scheme, kind in ((ANIML, "animl"), (LILA, "lila")):
            if self.export.startswith(scheme) != (self.kind == kind) and (self.kind != "auto"):
                raise ValueError(f"kind: {self.kind} does not fit export: {self.export!r}; {kind} goes with {scheme}…, and nothing else does")
        project = self.project()
        if project is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", project):
            raise ValueError("export: expected animl://<project id>, an id of letters, digits, '_' and '-'; who asks, and where, are settings")
        if self.animl is not None and project is None:
            raise ValueError(f"animl: says what to export from Animl, but export names a file; expected animl://<project id>, found {self.export!r}")
        if self.export.startswith(LILA):
            lila_set(self.export)
        if self.kind == "folders" and self.layout is not None and "{label}" not in self.layout:
            raise ValueError(f"layout: {self.layout!r} does not say which folder is the label; for kind folders it needs {{label}}")
        if self.layout is not None and self.kind not in {"auto", "folders", "megadetector"}:
            raise ValueError(f"layout: says what folders of pictures mean; kind {self.kind} has no use for it")
        return self

    def project(self) -> str | None:
        """The Animl project that is asked for its export, None where the export is a file."""
        return self.export.removeprefix(ANIML) if self.export.startswith(ANIML) else None

    def namespace(self) -> str:
        """What stands before the names of the source's places."""
        return self.location_namespace or self.name


def is_file(export: str) -> bool:
    """Whether a path or address is by its name one file and no folder; what follows a question mark is no part of the name."""
    return (export.partition("?")[0] if "://" in export else export).lower().endswith(FILES)


def _images_of(export: str, kind: str) -> str | None:
    """Where the pictures lie that an export names, if the export says it by itself."""
    if export.startswith(LILA):
        return export
    if kind in {"auto", "camtrap-dp"} and export.rpartition("/")[2] == "datapackage.json":
        return export.rpartition("/")[0] or "."
    if not export.startswith(ANIML) and kind in {"auto", "folders", "camtrap-dp"} and not is_file(export):
        return export
    return None


class ImagesConfig(Record):
    """How pictures are fetched. Neither changes what a picture is, so another value here makes nothing anew."""

    max_disk: ByteSize | None = Field(default=None, gt=0, description="the store may grow to this, such as 500 GB; what is over it is left out")
