"""How the labels of a source are written: what the plan says, else what the export looks like."""

from __future__ import annotations

import mmap
import os
import zipfile
from pathlib import Path
from typing import Literal

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.sources import is_file
from animl_pipeline.core.errors import redact_url
from animl_pipeline.steps.export.archives import faults_named, own_names
from animl_pipeline.steps.export.camtrap_dp import PACKAGE

Shape = Literal["folders", "package", "file"]
"""Pictures in folders, a Camtrap DP that is not packed, or one file (which may be a packed Camtrap DP)."""


def shape_of(source: SourceConfig, settings: Settings) -> Shape:
    """What a source's export is, before any of it is read."""
    export, bucket = source.export, source.export.startswith("s3://")
    one_file = is_file(export)
    if source.kind == "folders":
        return "folders"
    if export.rpartition("/")[2] == PACKAGE or (source.kind == "camtrap-dp" and not one_file):
        return "package"
    if source.kind != "auto":
        return "file"
    if "://" not in export and os.path.isdir(settings.data_path(export)):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        return "package" if (settings.data_path(export) / PACKAGE).is_file() else "folders"
    return "folders" if bucket and not one_file else "file"


def is_packed_package(source: SourceConfig, path: Path) -> bool:
    """Whether a file is a Camtrap DP in a zip.

    Raises:
        ExportError: it is a zip that cannot be opened.
    """
    if source.kind != "auto" or not zipfile.is_zipfile(path):
        return source.kind == "camtrap-dp"
    with faults_named(redact_url(source.export)), zipfile.ZipFile(path) as archive:
        return any(n.rpartition("/")[2] == PACKAGE for n in own_names(archive))


def is_megadetector(source: SourceConfig, path: Path) -> bool:
    """Whether a JSON file is MegaDetector's: it names detection categories, and has no annotations."""
    if source.kind != "auto" or not path.stat().st_size:
        return source.kind == "megadetector"
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b'"detection_categories"') >= 0 > text.find(b'"annotations"')
