"""Any kind of labels as COCO for Camera Traps: what was read is kept untouched beside it, and tables are made as of any export.

A converter gives images and annotations as rows, one at a time, and lists what it leaves out. Boxes that are relative lie in
pictures of 1 x 1: an export's boxes are in the pixels of the size that it says, whatever size the picture has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.records import Artifact
from animl_pipeline.core.table_schemas import EXPORT_LOCATIONS
from animl_pipeline.core.tables import write_table
from animl_pipeline.integrations.animl import CameraDeployment
from animl_pipeline.steps.export.declaration import STEP
from animl_pipeline.steps.export.locations import Location, locations_table, merge_deployments
from animl_pipeline.steps.export.problems import Problem
from animl_pipeline.steps.export.read_export import batches
from animl_pipeline.steps.export.write_tables import write_batches
from animl_pipeline.storage.remote_files import RemoteError, check_relative_path
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

Row = dict[str, Any]
UNIT = {"width": 1, "height": 1}
"""The size of a picture whose boxes are relative."""
REVIEWED = {"validated": True, "validated_by": "a person"}
UNREVIEWED = {"validated": False, "validated_by": "Not Reviewed"}
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
"""How files end that are pictures; videos are among the others."""

_ENCODER = json.JSONEncoder(separators=(",", ":"))  # ASCII: half a surrogate pair in a name is nothing that UTF-8 can hold


class Converted(NamedTuple):
    """Labels as rows. An annotation has ``name`` instead of a category id; ``problems`` grows while rows are taken.

    ``sites`` is where the source's cameras stood, empty where it knows no coordinates.
    """

    images: Iterable[Row]
    annotations: Iterable[Row]
    problems: list[Problem]
    sites: list[CameraDeployment]


def make_converted(
    source: SourceConfig,
    store: Store,
    *,
    originals: Mapping[str, bytes],
    digests: Mapping[str, str],
    config: Mapping[str, Any],
    convert: Callable[[], Converted],
) -> Artifact:
    """The export step of a source that is not COCO for Camera Traps: export.json made of it, and its tables.

    What was read lies untouched below original/; places.parquet says which places are one, where coordinates are known.

    Args:
        source: the source.
        store: where to.
        originals: what was read, by name.
        digests: what the step depends on, by content.
        config: which parts of the plan change what is made.
        convert: makes the rows.

    Raises:
        ExportError: no object is left.
    """

    def build(space: Workspace) -> StepOutput:
        for name, data in originals.items():
            path = space.out / "original" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        converted = convert()
        write_cct(space.out / "export.json", converted)
        locs = merge_deployments(converted.sites, source.merge_locations_within_m) if converted.sites else []
        if locs:
            write_table(space.out, EXPORT_LOCATIONS, locations_table(locs))
        return _tables(space, source, converted.problems, locs)

    return store.make(STEP, digests=digests, config=dict(config), build=build)


def _tables(space: Workspace, source: SourceConfig, problems: list[Problem], locs: list[Location]) -> StepOutput:
    plain = source.model_copy(update={"key": "file_name", "location_field": "location"})  # our own fields, whatever the source's are
    rows = batches(space.out / "export.json", source.export)
    return write_batches(space, rows, plain, known=problems, locations={p.deployment: p.location for p in locs})


def write_cct(path: Path, converted: Converted) -> None:
    """Write rows as one COCO for Camera Traps file; "empty" is category 0, the others follow as they come."""
    number = {"empty": 0}
    with path.open("w", encoding="utf-8") as f:
        f.write('{"images":[\n')
        _write_joined(f.write, (_ENCODER.encode(row) for row in converted.images))
        f.write('\n],"annotations":[\n')
        _write_joined(f.write, (_ENCODER.encode(_numbered(row, number)) for row in converted.annotations))
        categories = [{"id": i, "name": name} for name, i in number.items()]
        f.write(f'\n],"categories":{_ENCODER.encode(categories)},"info":{{"version":"1.0"}}}}\n')


def _numbered(row: Row, number: dict[str, int]) -> Row:
    """The annotation with its category's number, a new one for a new name."""
    return {k: v for k, v in row.items() if k != "name"} | {"category_id": number.setdefault(row["name"], len(number))}


def _write_joined(write: Callable[[str], Any], rows: Iterable[str]) -> None:
    for i, row in enumerate(rows):
        write(row if i == 0 else f",\n{row}")


def is_image(name: str) -> bool:
    """Whether a file's name is a picture's."""
    return Path(name).suffix.lower() in IMAGES


def is_safe(name: str) -> bool:
    """Whether a path stays below the pictures' place."""
    try:
        check_relative_path(name)
    except RemoteError:
        return False
    return "://" not in name
