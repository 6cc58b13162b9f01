"""Write other label formats as COCO for Camera Traps: folders of images, Camtrap DP and MegaDetector results.

A converter gives images and annotations as rows, one at a time, and lists what it drops. The files that it read are kept
unchanged below original/. Relative boxes are written into images of 1 x 1 pixels, because boxes of an export are in pixels of
the size that the export states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from animl_pipeline.config import SourceConfig
from animl_pipeline.integrations.animl import CameraDeployment
from animl_pipeline.steps.export.fetch_and_parse_coco import read_batches
from animl_pipeline.steps.export.problems import Problems
from animl_pipeline.steps.export.write_export_tables import ExportBuild, merge_deployments, write_tables
from animl_pipeline.storage.store import StepOutput, Workspace

Row = dict[str, Any]
UNIT_SIZE = {"width": 1, "height": 1}
"""The image size for relative boxes."""
REVIEWED = {"validated": True, "validated_by": "a person"}
UNREVIEWED = {"validated": False, "validated_by": "Not Reviewed"}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".webp"})
UNREAD_SUFFIXES = frozenset({".gif", ".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"})
"""Images that are not read. Cameras' raw files and those of phones belong here."""

_ENCODER = json.JSONEncoder(separators=(",", ":"))  # ASCII: a name may hold half of a surrogate pair, which UTF-8 cannot


class Converted(NamedTuple):
    """Labels as COCO rows.

    ``problems``: what was dropped or is odd; it grows while the rows are taken. ``deployments``: where the source's cameras stood; empty
    where it has no coordinates.
    """

    images: Iterable[Row]
    annotations: Iterable[Row]
    problems: Problems
    deployments: list[CameraDeployment]


def converted_export(
    source: SourceConfig, originals: Mapping[str, bytes], digests: Mapping[str, str], config: Mapping[str, Any], convert: Callable[[], Converted]
) -> ExportBuild:
    """The export step of a source that is not COCO for Camera Traps.

    ``digests``: the contents that the step depends on. ``config``: the values of the plan that change what is made.
    """

    def build(space: Workspace) -> StepOutput:
        for name, data in originals.items():
            path = space.out / "original" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        converted = convert()
        write_coco(space.out / "export.json", converted)
        locations = merge_deployments(converted.deployments, source.merge_locations_within_m) if converted.deployments else None
        own_fields = source.model_copy(update={"path_field": "file_name", "location_field": "location"})  # those of our export.json
        return write_tables(space, read_batches(space.out / "export.json", source.export), own_fields, converted.problems, locations)

    return ExportBuild(digests, config, build)


def write_coco(path: Path, converted: Converted) -> None:
    """Write the rows as one COCO file. Category 0 is "empty"; the others follow in the order of their first annotation."""
    number = {"empty": 0}
    with path.open("w", encoding="utf-8") as f:
        f.write('{"images":[\n')
        write_joined(f.write, (_ENCODER.encode(row) for row in converted.images))
        f.write('\n],"annotations":[\n')
        write_joined(f.write, (_ENCODER.encode(_with_category_id(row, number)) for row in converted.annotations))
        categories = [{"id": i, "name": label} for label, i in number.items()]
        f.write(f'\n],"categories":{_ENCODER.encode(categories)},"info":{{"version":"1.0"}}}}\n')


def _with_category_id(row: Row, number: dict[str, int]) -> Row:
    return {k: v for k, v in row.items() if k != "label"} | {"category_id": number.setdefault(row["label"], len(number))}


def write_joined(write: Callable[[str], Any], rows: Iterable[str]) -> None:
    """Write texts with a comma between them, one a line."""
    for i, row in enumerate(rows):
        write(row if i == 0 else f",\n{row}")


def why_not_an_image(name: str) -> str:
    """Why a file that is no image by its name is not used, and what to do."""
    suffix = Path(name).suffix.lower()
    if suffix in UNREAD_SUFFIXES:
        return f"{suffix} images are not read; convert them to JPEG, such as with ImageMagick: magick mogrify -format jpg *{suffix}"
    return "only images are used; videos are not"


def is_image(name: str) -> bool:
    """Whether a file name is that of an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES
