"""MegaDetector's batch results as an export: boxes, and the best class of each. A machine said so: all of it is unreviewed.

Format: https://lila.science/megadetector-output-format. Boxes are [x_min, y_min, width, height], relative.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from animl_pipeline.config import MegadetectorConfig, SourceConfig
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.export.class_folders import Meaning, read_layout
from animl_pipeline.steps.export.columns import is_number, text
from animl_pipeline.steps.export.problems import Problem
from animl_pipeline.steps.export.to_coco import UNIT, UNREVIEWED, Converted, Row, is_image, is_safe, make_converted
from animl_pipeline.storage.step_cache import Store


def export_megadetector(source: SourceConfig, data: bytes, store: Store) -> Artifact:
    """The export step of MegaDetector's JSON; see :func:`animl_pipeline.steps.export.export_annotations`.

    Raises:
        ExportError: it is not that format, or nothing of it is left.
    """
    found = _parsed(data, redact_url(source.export))
    spec = source.megadetector or MegadetectorConfig()
    return make_converted(
        source,
        store,
        originals={"results.json": data},
        digests={"file": hashlib.sha256(data).hexdigest()},
        config={"kind": "megadetector", "layout": source.layout, **spec.model_dump(mode="json")},
        convert=lambda: _converted(found, spec, source.layout),
    )


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ExportError(f"{where} is not JSON ({e}); fetch it again, it may have been cut off") from e
    if not isinstance(found, dict) or not isinstance(found.get("images"), list) or not isinstance(found.get("detection_categories"), dict):
        raise ExportError(f"{where} is not MegaDetector's format: expected the keys images (a list) and detection_categories; mend sources.kind")
    if not isinstance(found.get("classification_categories") or {}, dict):
        raise ExportError(
            f"{where} is not MegaDetector's format: expected classification_categories as numbers with names, found a list; write it anew"
        )
    return found


def _converted(found: dict[str, Any], spec: MegadetectorConfig, layout: str | None) -> Converted:
    problems: list[Problem] = []
    rows = [row | {"file": _path(row)} for row in found["images"] if _usable(row, problems)]
    return Converted(_images(rows, layout, problems), _labels(rows, found, spec, problems), problems, [])


def _path(row: Any) -> str | None:
    """A picture's path with slashes, as they are not written on Windows."""
    file = row.get("file") if isinstance(row, dict) else None
    return file.replace("\\", "/") if isinstance(file, str) else None


def _usable(row: Any, problems: list[Problem]) -> bool:
    """Whether it names a picture that the machine has seen."""
    file = _path(row)
    if file is None:
        problems.append(("image_without_id", "", str(row)[:80]))
    elif not is_image(file):
        problems.append(("not_an_image", file[:160], "only pictures are used; videos are not"))
    elif row.get("failure") or not isinstance(row.get("detections"), list):
        problems.append(("failed_image", file[:160], str(row.get("failure") or "no detections")[:160]))
    elif not is_safe(file):
        problems.append(("unsafe_path", file[:160], "expected a path below the pictures' place"))
    else:
        return True
    return False


def _images(rows: list[Row], layout: str | None, problems: list[Problem]) -> Iterator[Row]:
    for row in rows:
        meaning = read_layout(layout, row["file"]) if layout else Meaning("", "")
        if meaning is None:
            problems.append(("no_location_folder", row["file"][:160], f"its path does not reach as deep as {layout}"))
        location = meaning.location if meaning else ""
        yield {"id": row["file"], "file_name": row["file"], "location": location, "datetime": str(row.get("datetime") or ""), **UNIT}


def _labels(rows: list[Row], found: dict[str, Any], spec: MegadetectorConfig, problems: list[Problem]) -> Iterator[Row]:
    kinds, names = found["detection_categories"], found.get("classification_categories") or {}
    for row in rows:
        sound = [d for d in row["detections"] if _is_sound(d, row["file"], problems)]
        sure = [d for d in sound if d["conf"] >= spec.confidence]
        if len(sure) < len(sound):
            problems.append(("image_with_boxes_below_confidence", row["file"][:160], f"{len(sound) - len(sure)} boxes below {spec.confidence}"))
        for i, detection in enumerate(sure):
            name = _best_class(detection, row["file"], names, spec.classification, problems) or text(kinds.get(str(detection.get("category"))))
            if not name:
                told = f"category {detection.get('category')!r} is not in detection_categories"
                problems.append(("unknown_category", row["file"][:160], told[:160]))
                continue
            yield {
                "id": f"{row['file']}#{i}",
                "image_id": row["file"],
                "name": name,
                "bbox": detection["bbox"],
                "confidence": detection["conf"],
                **UNREVIEWED,
            }
        if not sure and len(sound) == len(row["detections"]):  # who knows what a malformed box was of
            yield {"id": f"{row['file']}#empty", "image_id": row["file"], "name": "empty", **UNREVIEWED}


def _is_sound(detection: Any, file: str, problems: list[Problem]) -> bool:
    if isinstance(detection, dict) and _is_share(detection.get("conf")) and _is_box(detection.get("bbox")):
        return True
    problems.append(("malformed_object", file[:160], str(detection)[:160]))
    return False


def _best_class(detection: Row, file: str, names: dict[str, Any], threshold: float, problems: list[Problem]) -> str:
    """The most certain class of a box, if it is certain enough and has a name."""
    said = detection.get("classifications")
    said = said if isinstance(said, list) else [] if said is None else [said]
    pairs = [p for p in said if isinstance(p, list) and len(p) == 2 and _is_share(p[1])]
    if len(pairs) < len(said):
        problems.append(("malformed_classification", file[:160], str(said)[:160]))
    best = max(pairs, key=lambda p: float(p[1]), default=None)
    if best is None or best[1] < threshold:
        return ""
    name = text(names.get(str(best[0])))
    if not name:
        problems.append(
            ("unknown_classification", file[:160], f"class {best[0]!r} is not in classification_categories; the box keeps its kind"[:160])
        )
    return name


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_box(value: Any) -> bool:
    """[x_min, y_min, width, height], relative; rounding may let it reach past the frame by a little."""
    if not (isinstance(value, list) and len(value) == 4 and all(is_number(v) for v in value)):
        return False
    x, y, w, h = (float(v) for v in value)
    return x >= -0.01 and y >= -0.01 and w > 0 and h > 0 and x + w <= 1.01 and y + h <= 1.01
