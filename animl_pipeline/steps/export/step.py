"""The export step: labels of any format become tables. The format is the plan's, or what the export looks like."""

from __future__ import annotations

import mmap
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.lila_datasets import LILA, lila_metadata
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.sources_and_images import is_file
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES, EXPORT_LOCATIONS, EXPORT_PROBLEMS
from animl_pipeline.steps.export.animl_incremental_export import read_animl_project
from animl_pipeline.steps.export.camtrap_dp import PACKAGE_FILE, read_camtrap_dp
from animl_pipeline.steps.export.class_folders import read_class_folders
from animl_pipeline.steps.export.fetch_and_parse_coco import fetch_export, read_batches, scratch_folder
from animl_pipeline.steps.export.labels_from_megadetector_results import read_megadetector
from animl_pipeline.steps.export.unpack_archives import archive_errors, unpack_json, zip_names
from animl_pipeline.steps.export.write_export_tables import ExportBuild, write_tables
from animl_pipeline.storage.store import StepOutput, Store, Workspace, sha256_of

STEP = Step("export", version=3, sections=("sources",), writes=(EXPORT_IMAGES, EXPORT_ANNOTATIONS, EXPORT_PROBLEMS, EXPORT_LOCATIONS))


def export_annotations(source: SourceConfig, store: Store, settings: Settings) -> Artifact:
    """Export the labels of one source.

    The artifact holds the tables images, annotations and problems, and locations where coordinates are known. It also holds
    what was read, unchanged: export.json for COCO for Camera Traps. Other formats are kept below original/, beside an
    export.json with the same labels as COCO. From an Animl project, export.json is merged from what Animl answered, window by
    window; the answers are kept below windows/, and windows.json lists them.

    Raises:
        ExportUnreachableError: Animl, or the host of the export, does not answer now.
        ExportError: the export cannot be read, its format is not known, or no annotation of it is usable.
        SettingsError: a setting for Animl is missing or wrong.
    """
    with _open_export(source, store, settings) as export:
        return store.make(STEP, digests=export.digests, config=export.config, build=export.build)


@contextmanager
def _open_export(source: SourceConfig, store: Store, settings: Settings) -> Iterator[ExportBuild]:
    """The source's export, ready to be stored. Its temporary files last as long as the block."""
    project = source.project()
    if project is not None:
        yield read_animl_project(project, source, store, settings)
        return
    layout = _layout_of(source, settings)
    if layout == "folders":
        yield read_class_folders(source, store, settings)
    elif layout == "camtrap_dp":
        yield read_camtrap_dp(source, settings)
    else:
        with _open_file(source, store, settings) as export:
            yield export


@contextmanager
def _open_file(source: SourceConfig, store: Store, settings: Settings) -> Iterator[ExportBuild]:
    """The export in one file, whose format shows only when the file is there."""
    if source.export.startswith(LILA):
        source = source.model_copy(update={"export": lila_metadata(source.export, settings.lila_url)})
    work = store.local / "work"
    with fetch_export(source, settings, work) as file, scratch_folder(work) as scratch:
        if _is_zipped_camtrap_dp(source, file):
            yield read_camtrap_dp(source, settings, file.read_bytes())
            return
        path = unpack_json(file, scratch / "export.json", redact_url(source.export), settings.max_unpacked_mb * 1_000_000)
        yield read_megadetector(source, path.read_bytes()) if _is_megadetector(source, path) else _read_coco(source, path)


def _read_coco(source: SourceConfig, path: Path) -> ExportBuild:
    """The export of a COCO for Camera Traps file."""
    digest, where = sha256_of(path), redact_url(source.export)

    def build(space: Workspace) -> StepOutput:
        kept = space.out / "export.json"
        shutil.copyfile(path, kept)
        if sha256_of(kept) != digest:
            raise ExportError(f"{where} changed while it was read; run again when it is complete", code="changed")
        return write_tables(space, read_batches(kept, where), source)

    return ExportBuild({"file": digest}, {"key": source.path_field, "location_field": source.location_field}, build)


# -- which format ----------------------------------------------------------------------------------------------------


def _layout_of(source: SourceConfig, settings: Settings) -> Literal["folders", "camtrap_dp", "file"]:
    """How an export is laid out: class folders, an unpacked Camtrap DP, or one file. Nothing of it is read."""
    export, one_file = source.export, is_file(source.export)
    if source.kind == "folders":
        return "folders"
    if export.rpartition("/")[2] == PACKAGE_FILE or (source.kind == "camtrap-dp" and not one_file):
        return "camtrap_dp"
    if source.kind != "auto":
        return "file"
    if "://" not in export and os.path.isdir(settings.data_path(export)):  # noqa: PTH112 - Path.is_dir raises for names that are too long
        return "camtrap_dp" if (settings.data_path(export) / PACKAGE_FILE).is_file() else "folders"
    return "folders" if export.startswith("s3://") and not one_file else "file"


def _is_zipped_camtrap_dp(source: SourceConfig, path: Path) -> bool:
    if source.kind != "auto" or not zipfile.is_zipfile(path):
        return source.kind == "camtrap-dp"
    with archive_errors(redact_url(source.export)), zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == PACKAGE_FILE for name in zip_names(archive))


def _is_megadetector(source: SourceConfig, path: Path) -> bool:
    """Whether a JSON file is MegaDetector's: it names detection categories and has no annotations."""
    if source.kind != "auto" or not path.stat().st_size:
        return source.kind == "megadetector"
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b'"detection_categories"') >= 0 > text.find(b'"annotations"')
