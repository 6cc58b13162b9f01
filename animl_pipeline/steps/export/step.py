"""The step: labels of any kind as tables."""

from __future__ import annotations

import shutil
from pathlib import Path

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.lila_datasets import LILA, lila_metadata
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.export.animl_export import export_project
from animl_pipeline.steps.export.camtrap_dp import export_camtrap
from animl_pipeline.steps.export.class_folders import export_folders
from animl_pipeline.steps.export.declaration import STEP
from animl_pipeline.steps.export.detect_format import is_megadetector, is_packed_package, shape_of
from animl_pipeline.steps.export.megadetector_results import export_megadetector
from animl_pipeline.steps.export.read_export import LARGEST, batches, fetched, scratch, unpacked
from animl_pipeline.steps.export.write_tables import write_batches
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace, sha256_of


def export_annotations(source: SourceConfig, store: Store, settings: Settings) -> Artifact:
    """The export of ``source``, untouched (export.json), and what it says as tables.

    images.parquet holds an image a row: ``image_id, file_name, path`` (below the source's pictures), ``place, taken,
    sequence`` (empty text where unknown), ``width, height`` (0 where unknown). annotations.parquet holds an object a row:
    ``object_id, image_id, name, x, y, w, h`` (absolute pixels, NaN for an image-level label), ``confidence`` (NaN for
    drawn by hand), ``reviewed``. problems.parquet lists ``problem, subject, detail``.

    From an Animl project, export.json is merged from what Animl answered, window by window; the answers are kept
    untouched below windows/ (windows.json says which is what), and places.parquet says which camera deployments are one
    place: ``location, place, lat, lon``.

    Folders of pictures, a Camtrap DP and MegaDetector's JSON are written as COCO for Camera Traps first (export.json; where boxes
    are relative, pictures are 1 x 1); what was read lies untouched below original/.

    Raises:
        ExportError: it cannot be read, is of no kind that is known, or no object of it is left.
        SettingsError: Animl is to be asked, but where it is, or as whom, is not said or not right.
    """
    project = source.project()
    if project is not None:
        return export_project(project, source, store, settings)
    shape = shape_of(source, settings)
    if shape == "folders":
        return export_folders(source, store, settings)
    return export_camtrap(source, store, settings) if shape == "package" else _from_file(source, store, settings)


def _from_file(source: SourceConfig, store: Store, settings: Settings) -> Artifact:
    """A file of any kind; which it is shows when it is there."""
    if source.export.startswith(LILA):
        source = source.model_copy(update={"export": lila_metadata(source.export, settings.lila)})
    work = store.local / "work"
    with fetched(source, settings, work) as packed, scratch(work) as folder:
        if is_packed_package(source, packed):
            return export_camtrap(source, store, settings, packed.read_bytes())
        path = unpacked(packed, folder / "export.json", redact_url(source.export), LARGEST)
        return export_megadetector(source, path.read_bytes(), store) if is_megadetector(source, path) else _from_cct(source, path, store)


def _from_cct(source: SourceConfig, path: Path, store: Store) -> Artifact:
    config = {"key": source.key, "location_field": source.location_field}
    digest = sha256_of(path)

    def build(space: Workspace) -> StepOutput:
        kept = space.out / "export.json"
        shutil.copyfile(path, kept)
        if sha256_of(kept) != digest:
            raise ExportError(f"{redact_url(source.export)} changed while it was read; run again when it is whole")
        return write_batches(space, batches(kept, redact_url(source.export)), source)

    return store.make(STEP, digests={"file": digest}, config=config, build=build)
