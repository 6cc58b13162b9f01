"""The step: a file, or an Animl project, as tables."""

from __future__ import annotations

from animl_pipeline.export.project import export_project
from animl_pipeline.export.reading import bare, parsed, read
from animl_pipeline.export.tables import write_tables
from animl_pipeline.plan import SourcePlan
from animl_pipeline.records import Artifact
from animl_pipeline.settings import Settings
from animl_pipeline.store import Made, Store, Workspace, sha256_of


def export_annotations(source: SourcePlan, store: Store, settings: Settings) -> Artifact:
    """The export of ``source``, untouched (export.json), and what it says as tables.

    images.parquet holds an image a row: ``image_id, file_name, path`` (below the source's pictures), ``place, taken,
    sequence`` (empty text where unknown), ``width, height`` (0 where unknown). objects.parquet holds an object a row:
    ``object_id, image_id, name, x, y, w, h`` (absolute pixels, NaN for an image-level label), ``confidence`` (NaN for
    drawn by hand), ``reviewed``. problems.parquet lists ``problem, subject, detail``.

    From an Animl project, export.json is merged from what Animl answered, window by window; the answers are kept
    untouched below windows/ (windows.json says which is what), and places.parquet says which camera deployments are one
    place: ``location, place, lat, lon``.

    Raises:
        ExportError: it cannot be read, is no COCO for Camera Traps, or no object of it is left.
        SettingsError: Animl is to be asked, but where it is, or as whom, is not said or not right.
    """
    project = source.project()
    return _from_file(source, store, settings) if project is None else export_project(project, source, store, settings)


def _from_file(source: SourcePlan, store: Store, settings: Settings) -> Artifact:
    data = read(source, settings)
    digest = store.put_blob(data)
    config = {"key": source.key, "place_field": source.place_field}

    def build(space: Workspace) -> Made:
        (space.out / "export.json").write_bytes(data)
        assert sha256_of(space.out / "export.json") == digest  # noqa: S101 - kept untouched
        return write_tables(space, parsed(data, bare(source.export)), source)

    return store.make("export", room="export", digests={"file": digest}, config=config, build=build)
