"""Read MegaDetector's batch results as labels: its boxes, and the best class of each. All of it is unreviewed.

Format: https://lila.science/megadetector-output-format. Boxes are [x_min, y_min, width, height], relative.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from animl_pipeline.config import MegadetectorConfig, SourceConfig
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.steps.export.class_folders import FolderLabels, read_layout
from animl_pipeline.steps.export.columns_from_json import is_number, to_text
from animl_pipeline.steps.export.fetch_and_parse_coco import not_json
from animl_pipeline.steps.export.images_table import is_safe_path
from animl_pipeline.steps.export.problems import Problems
from animl_pipeline.steps.export.recognise_other_formats import HEAD_BYTES
from animl_pipeline.steps.export.to_coco import UNIT_SIZE, UNREVIEWED, Converted, Row, converted_export, is_image, why_not_an_image
from animl_pipeline.steps.export.write_export_tables import ExportBuild

MAX_COORDINATE = 2.0
"""Relative coordinates end at 1, or a little beyond the edge. A larger number is in pixels."""


def read_megadetector(source: SourceConfig, data: bytes) -> ExportBuild:
    """The export of MegaDetector's results file.

    Raises:
        ExportError: ``not_json``, or ``not_megadetector``.
    """
    results = _parse(data, redact_url(source.export))
    config = source.megadetector or MegadetectorConfig()
    return converted_export(
        source,
        originals={"results.json": data},
        digests={"file": hashlib.sha256(data).hexdigest()},
        config={"kind": "megadetector", "layout": source.layout, **config.model_dump(mode="json")},
        convert=lambda: _convert(results, config, source.layout),
    )


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        results = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise not_json(where, e, data[:HEAD_BYTES]) from e
    if not isinstance(results, dict) or not isinstance(results.get("images"), list) or not isinstance(results.get("detection_categories"), dict):
        expected = "the keys images (a list) and detection_categories; fix sources.kind in the plan"
    elif not isinstance(results.get("classification_categories") or {}, dict):
        expected = "classification_categories as numbers with names, found a list; write the file again"
    else:
        return results
    raise ExportError(f"{where} is not in MegaDetector's format: expected {expected}", code="not_megadetector")


def _convert(results: dict[str, Any], config: MegadetectorConfig, layout: str | None) -> Converted:
    problems = Problems()
    rows = [row | {"file": _path(row)} for row in results["images"] if _is_usable(row, problems)]
    return Converted(_images(rows, layout, problems), _annotations(rows, results, config, problems), problems, [])


def _path(row: Any) -> str | None:
    """An image's path with slashes, which Windows does not write."""
    file = row.get("file") if isinstance(row, dict) else None
    return file.replace("\\", "/") if isinstance(file, str) else None


def _is_usable(row: Any, problems: Problems) -> bool:
    """Whether a record names an image on which the detector ran."""
    file = _path(row)
    if file is None:
        problems.add("image_without_id", "", str(row)[:80])
    elif not is_image(file):
        problems.add("not_an_image", file, why_not_an_image(file))
    elif row.get("failure") or not isinstance(row.get("detections"), list):
        problems.add("failed_image", file, str(row.get("failure") or "no detections"))
    elif not is_safe_path(file) or "://" in file:
        problems.add("unsafe_path", file, "expected a path below the folder of the images")
    else:
        return True
    return False


def _images(rows: list[Row], layout: str | None, problems: Problems) -> Iterator[Row]:
    for row in rows:
        folders = read_layout(layout, row["file"]) if layout else FolderLabels("", "")
        if folders is None:
            problems.add("no_location_folder", row["file"], f"its path is not as deep as {layout}")
        location = folders.location if folders else ""
        yield {"id": row["file"], "file_name": row["file"], "location": location, "datetime": str(row.get("datetime") or ""), **UNIT_SIZE}


def _annotations(rows: list[Row], results: dict[str, Any], config: MegadetectorConfig, problems: Problems) -> Iterator[Row]:
    categories, classes = results["detection_categories"], results.get("classification_categories") or {}
    for row in rows:
        file = row["file"]
        valid = [d for d in row["detections"] if _is_valid(d, file, problems)]
        confident = [d for d in valid if d["conf"] >= config.confidence]
        if len(confident) < len(valid):
            problems.add("boxes_below_confidence", file, f"{len(valid) - len(confident)} boxes below {config.confidence}")
        for i, detection in enumerate(confident):
            category = detection.get("category")
            label = _best_class(detection, file, classes, config.classification, problems) or to_text(categories.get(str(category)))
            if not label:
                problems.add("unknown_category", file, f"category {category!r} is not in detection_categories")
                continue
            annotation = {"id": f"{file}#{i}", "image_id": file, "label": label}
            yield annotation | {"bbox": detection["bbox"], "confidence": detection["conf"], **UNREVIEWED}
        if not confident and len(valid) == len(row["detections"]):  # a malformed box may be of an animal
            yield {"id": f"{file}#empty", "image_id": file, "label": "empty", **UNREVIEWED}


def _is_valid(detection: Any, file: str, problems: Problems) -> bool:
    if isinstance(detection, dict) and _is_share(detection.get("conf")) and _is_box(detection.get("bbox")):
        return True
    problems.add("malformed_annotation", file, str(detection))
    return False


def _best_class(detection: Row, file: str, classes: dict[str, Any], threshold: float, problems: Problems) -> str:
    """The most probable class of a box, "" where it is below the threshold or has no name."""
    found = detection.get("classifications")
    found = found if isinstance(found, list) else [] if found is None else [found]
    pairs = [p for p in found if isinstance(p, list) and len(p) == 2 and _is_share(p[1])]
    if len(pairs) < len(found):
        problems.add("malformed_classification", file, str(found))
    best = max(pairs, key=lambda p: float(p[1]), default=None)
    if best is None or best[1] < threshold:
        return ""
    name = to_text(classes.get(str(best[0])))
    if not name:
        problems.add("unknown_classification", file, f"class {best[0]!r} is not in classification_categories; the detector's category is used")
    return name


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_box(value: Any) -> bool:
    """Whether a value is a relative box [x_min, y_min, width, height] that overlaps the image; what is beyond the edge is cut off later."""
    if not (isinstance(value, list) and len(value) == 4 and all(is_number(v) for v in value)):
        return False
    x, y, w, h = (float(v) for v in value)
    return w > 0 and h > 0 and x < 1 and y < 1 and x + w > 0 and y + h > 0 and max(abs(x), abs(y), w, h) <= MAX_COORDINATE
