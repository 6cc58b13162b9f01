"""What an export says, as tables: every problem is counted and listed; none ends the run unless nothing is left.

Category ids differ from one export to the next, so only names leave this room.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from animl_pipeline.errors import ExportError
from animl_pipeline.export.reading import bare
from animl_pipeline.plan import SourcePlan
from animl_pipeline.records import Counts
from animl_pipeline.remote import RemoteError, safe_name
from animl_pipeline.store import Made, Workspace, write_table

IMAGE_COLUMNS = ("image_id", "file_name", "path", "place", "taken", "sequence", "width", "height")
OBJECT_COLUMNS = ("object_id", "image_id", "name", "x", "y", "w", "h", "confidence", "reviewed")
PROBLEM_COLUMNS = ("problem", "subject", "detail")
MAX_SIDE = 1 << 31
"""No picture has sides of so many pixels: such a size is a fault."""
LOSES = frozenset(
    "image_without_id duplicate_image unsafe_path unknown_image unknown_category duplicate_object malformed_object box_empty box_outside".split()
)
"""Problems for which a record is left out; with the others it is kept and noted."""


Problem = tuple[str, str, str]


def write_tables(
    space: Workspace, cct: dict[str, Any], source: SourcePlan, *, known: list[Problem] | None = None, places: Mapping[str, str] | None = None
) -> Made:
    """Write images.parquet, objects.parquet and problems.parquet from a COCO for Camera Traps document.

    Args:
        space: where to.
        cct: the document.
        source: which of its fields mean what.
        known: problems found before, to be listed and counted with the others.
        places: the place that a location is part of; locations that are not named are places of their own.

    Raises:
        ExportError: no object is left.
    """
    problems: list[Problem] = list(known or [])
    images = _images(cct["images"], source, problems, places or {})
    objects = _objects(cct["annotations"], _category_names(cct["categories"]), images, problems)
    counts = Counter(p for p, _, _ in problems)
    dropped = {p: n for p, n in counts.items() if p in LOSES}
    if not objects:
        found = ", ".join(f"{n} {p.replace('_', ' ')}" for p, n in counts.most_common()) or "no annotations at all"
        raise ExportError(
            f"{bare(source.export)}: nothing is left of {len(cct['annotations'])} annotations: {found}; mend the export or choose another"
        )
    write_table(space.out / "images.parquet", pd.DataFrame(list(images.values()), columns=list(IMAGE_COLUMNS)))
    write_table(space.out / "objects.parquet", pd.DataFrame(objects, columns=list(OBJECT_COLUMNS)))
    write_table(space.out / "problems.parquet", pd.DataFrame(problems, columns=list(PROBLEM_COLUMNS)))
    return Made(Counts(kept=len(objects), dropped=dropped, noted={p: n for p, n in counts.items() if p not in LOSES}))


def _images(rows: list[Any], source: SourcePlan, problems: list[Problem], places: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
    """Image id → its row."""
    images: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        image_id = _text(row.get("id")) if isinstance(row, dict) else ""
        if not image_id:
            problems.append(("image_without_id", "", _text(row)[:80]))
        elif image_id in images:
            problems.append(("duplicate_image", image_id, "the first one counts"))
        elif not _is_safe(_text(row.get(source.key))):
            problems.append(("unsafe_path", image_id, f"{source.key} = {row.get(source.key)!r}"[:160]))
        else:
            width, height = _size(row.get("width")), _size(row.get("height"))
            if not (width and height):
                problems.append(("missing_size", image_id, f"width {row.get('width')!r}, height {row.get('height')!r}; the picture's own counts"))
            path, place = _text(row[source.key]), _text(row.get(source.place_field))
            images[image_id] = (
                image_id, _text(row.get("file_name")) or path, path, places.get(place, place), _text(row.get("datetime")),
                _text(row.get("seq_id")), width, height,
            )  # fmt: skip
    return images


def _category_names(rows: list[Any]) -> dict[Any, str]:
    return {row["id"]: _text(row.get("name")) for row in rows if isinstance(row, dict) and isinstance(row.get("id"), (int, str))}


def _objects(rows: list[Any], names: dict[Any, str], images: dict[str, tuple[Any, ...]], problems: list[Problem]) -> list[tuple[Any, ...]]:
    objects: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        fault = _fault(row, names, images, objects)
        if fault is not None:
            problems.append(fault)
            continue
        object_id, image_id = _text(row["id"]), _text(row["image_id"])
        x, y, w, h = _box(row.get("bbox")) or (math.nan,) * 4
        reviewed = row.get("validated") is not False and row.get("validated_by") != "Not Reviewed"
        width, height = images[image_id][6:8]
        if not reviewed:
            problems.append(("unreviewed", object_id, f"label {names[row['category_id']]!r}"))
        if width and height and not math.isnan(x) and not (x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
            problems.append(("box_partly_outside", object_id, f"bbox {row['bbox']} in {width} x {height}; it will be cut at the frame"))
        confidence = row.get("confidence")
        objects[object_id] = (
            object_id, image_id, names[row["category_id"]], x, y, w, h, float(confidence) if _is_number(confidence) else math.nan, reviewed,
        )  # fmt: skip
    return list(objects.values())


def _fault(row: Any, names: dict[Any, str], images: dict[str, tuple[Any, ...]], seen: dict[str, Any]) -> Problem | None:
    """Why an annotation must be left out, if it must."""
    if not isinstance(row, dict) or not _text(row.get("id")) or isinstance(row.get("category_id"), (list, dict)):
        return ("malformed_object", "", _text(row)[:80])
    object_id = _text(row["id"])
    if object_id in seen:
        return ("duplicate_object", object_id, "the first one counts")
    if _text(row.get("image_id")) not in images:
        return ("unknown_image", object_id, f"image_id {row.get('image_id')!r}"[:160])
    if not names.get(row.get("category_id")):
        return ("unknown_category", object_id, f"category_id {row.get('category_id')!r}")
    if row.get("bbox") in (None, []):
        return None
    box = _box(row["bbox"])
    if box is None:
        return ("malformed_object", object_id, f"bbox {row['bbox']!r}"[:160])
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return ("box_empty", object_id, f"bbox {row['bbox']}")
    width, height = images[_text(row["image_id"])][6:8]
    if (width and height) and (x >= width or y >= height or x + w <= 0 or y + h <= 0):
        return ("box_outside", object_id, f"bbox {row['bbox']} in {width} x {height}")
    return None


def _box(value: Any) -> tuple[float, float, float, float] | None:
    if isinstance(value, list) and len(value) == 4 and all(_is_number(v) for v in value):
        x, y, w, h = (float(v) for v in value)
        return x, y, w, h
    return None


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def _size(value: Any) -> int:
    return int(value) if _is_number(value) and 0 < value < MAX_SIDE else 0


def _text(value: Any) -> str:
    """A value as text; halves of surrogate pairs, which JSON may hold and no file can, become '?'."""
    return "" if value is None else str(value).encode("utf-8", "replace").decode()


def _is_safe(name: str) -> bool:
    try:
        safe_name(name)
    except RemoteError:
        return False
    return True
