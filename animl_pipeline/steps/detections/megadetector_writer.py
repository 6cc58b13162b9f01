"""MegaDetector's batch results format, https://lila.science/megadetector-output-format: what the field's tools read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from animl_pipeline.steps.detections.detector import CATEGORIES, Detection
from animl_pipeline.steps.detections.run_detector import BROKEN

FORMAT_VERSION = "1.6"
FAILURES = {BROKEN: "image access failure"}
"""Our reasons in the format's own words, where it has any."""


def batch_file(detector: str, images: Iterable[tuple[str, list[Detection] | str]], confidence: float | None = None) -> str:
    """The file's text: per image its detections, boxes as [x_min, y_min, width, height], or its failure.

    There is no time in it, so that the same detections give the same file.

    Args:
        detector: the name for ``info.detector``.
        images: file name, and what was found in it or why nothing could be.
        confidence: from which on the detector's boxes count, for ``info.detector_metadata``.
    """
    info: dict[str, Any] = {"format_version": FORMAT_VERSION, "detector": detector}
    if confidence is not None:
        info["detector_metadata"] = {"megadetector_version": detector, "typical_detection_threshold": confidence}
    head = json.dumps({"info": info, "detection_categories": CATEGORIES}, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(_image(file, found)) for file, found in sorted(images, key=lambda image: image[0]))  # a line an image
    return f'{head},\n "images": [\n  {lines}\n ]\n}}\n'


def _image(file: str, found: list[Detection] | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"file": file, "failure": FAILURES.get(found, found.replace("_", " ")), "detections": None}
    return {"file": file, "detections": [_detection(f) for f in found]}


def _detection(found: Detection) -> dict[str, Any]:
    box = [found.xmin, found.ymin, found.xmax - found.xmin, found.ymax - found.ymin]
    return {"category": found.category, "conf": float(found.confidence), "bbox": [round(v, 5) for v in box]}
