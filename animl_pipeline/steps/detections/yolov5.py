"""YOLOv5 checkpoints, which ultralytics no longer loads: MegaDetector v5a and v5b, MDv1000 redwood and spruce.

They run through the field's own ``megadetector`` package and the YOLOv5 code that it uses: docs/detections.md says how both
are installed. A checkpoint is a pickle that runs what is in it, so it is loaded only when the plan names its sha256.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.steps.detections.detector import ANIMAL, PERSON, VEHICLE, Detection, tidy

log = logging.getLogger(__name__)

RECIPE = "megadetector-yolov5/1"
"""Moves on when the same picture and weights would give other boxes."""

MISSING = "{} needs the megadetector package and its YOLOv5 code ({}); install them as docs/detections.md says, or set detections.detector to another"


class YoloV5:
    """A YOLOv5 MegaDetector in memory, on the GPU where there is one."""

    alone = False
    categories = frozenset({ANIMAL, PERSON, VEHICLE})

    def __init__(self, detector: Any, image_size: int, confidence: float) -> None:
        self._detector, self._size, self._confidence = detector, image_size, confidence
        self._most = 1 if str(detector.device) == "cpu" else sys.maxsize  # more at a time take memory there, and save no time

    @classmethod
    def load(cls, path: Path, image_size: int, confidence: float) -> YoloV5:
        """The detector from a checkpoint.

        Raises:
            DetectionsError: the packages are not there, or the file is no YOLOv5 checkpoint.
        """
        try:
            import yolov5  # noqa: F401 - megadetector falls back to any module named utils without it
            from megadetector.detection.pytorch_detector import PTDetector
        except ImportError as e:
            raise DetectionsError(MISSING.format(path.name, e)) from e
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it tells its story there
                detector = PTDetector(str(path), detector_options={"model_type": "yolov5"})
        except Exception as e:  # a pickle of who knows what may raise anything
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise DetectionsError(f"{path.name} is no YOLOv5 checkpoint that megadetector loads ({reason}); set detections.detector") from e
        detector.printed_image_size_warning = True  # so that preprocessing, in several threads, prints nothing
        return cls(detector, image_size, confidence)

    def preprocess(self, data: bytes) -> dict[str, Any]:
        ready = dict(self._detector.preprocess_image(open_image(data), "", self._size))
        shape = ready["img_original"].shape  # all that is asked of whole pictures later; a batch of them would fill the memory
        return ready | {"img_original": np.broadcast_to(np.uint8(0), shape), "img_original_pil": None}

    def predict(self, prepared: Sequence[dict[str, Any]]) -> list[list[Detection]]:
        answers: list[list[Detection]] = []
        while len(answers) < len(prepared):
            part = list(prepared[len(answers) :][: self._most])
            answers += self._asked(part)
        return answers

    def _asked(self, part: list[dict[str, Any]]) -> list[list[Detection]]:
        """What is found in each; none at all where they were too many at a time, which shows as any other failure does."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            answers = self._detector.generate_detections_one_batch(part, detection_threshold=self._confidence)
        failed = next((a["failure"] for a in answers if a.get("failure")), None)
        if failed is None:
            return [tidy(_found(d) for d in answer["detections"]) for answer in answers]
        reason = (said.getvalue().strip().splitlines() or [failed])[-1]
        if len(part) == 1:
            raise DetectionsError(f"megadetector did not look at a picture ({reason}); see that its packages fit each other, and the memory suffices")
        self._most = len(part) // 2
        log.warning("detections: megadetector did not look at %d pictures at a time (%s); from here on %d", len(part), reason, self._most)
        return []


def _found(detection: dict[str, Any]) -> Detection:
    left, top, width, height = detection["bbox"]
    return Detection(detection["category"], detection["conf"], top, left, top + height, left + width)
