"""YOLOv5 checkpoints, which ultralytics no longer loads: MegaDetector v5a and v5b, MDv1000 redwood and spruce.

They run through the ``megadetector`` package and the YOLOv5 code that it uses; docs/detections.md says how to install both. A checkpoint is
a pickle that runs code when it is loaded, so it is loaded only if the plan names its sha256.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.write_megadetector_results import CATEGORIES
from animl_pipeline.steps.detections.detector import Detection, clean_detections

log = logging.getLogger(__name__)

VERSION = 1
"""Raised when the same image and weights give other boxes."""
LIBRARIES = ("pillow", "torch", "megadetector", "ultralytics-yolov5")


class YoloV5:
    """A YOLOv5 MegaDetector, loaded, on the GPU if there is one."""

    batched = True
    categories = frozenset(CATEGORIES)

    def __init__(self, detector: Any, image_size: int, confidence: float) -> None:
        self._detector, self._size, self._confidence = detector, image_size, confidence

    @classmethod
    def load(cls, path: Path, image_size: int, confidence: float) -> YoloV5:
        """Load the detector from a checkpoint.

        Raises:
            DetectionsError: the packages are not installed, or the file is not a YOLOv5 checkpoint.
        """
        try:
            import yolov5  # noqa: F401 - without it megadetector would import any module called utils
            from megadetector.detection.pytorch_detector import PTDetector
        except ImportError as e:
            raise DetectionsError(
                f"{path.name} needs the megadetector package and its YOLOv5 code ({e}); install them as docs/detections.md says, or set "
                "detections.detector to another detector",
                code="package_missing",
            ) from e
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints a lot
                detector = PTDetector(str(path), detector_options={"model_type": "yolov5"})
        except Exception as e:  # a pickle may raise anything
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise DetectionsError(
                f"{path.name} is not a YOLOv5 checkpoint that megadetector loads ({reason}); set detections.detector", code="not_a_checkpoint"
            ) from e
        detector.printed_image_size_warning = True  # so that it does not print while several threads preprocess
        return cls(detector, image_size, confidence)

    def preprocess(self, data: bytes) -> dict[str, Any]:
        prepared = dict(self._detector.preprocess_image(open_image(data), "", self._size))
        # Later only the shape of the original image is read. A batch of original images would fill the memory.
        return prepared | {"img_original": np.broadcast_to(np.uint8(0), prepared["img_original"].shape), "img_original_pil": None}

    def predict(self, inputs: Sequence[dict[str, Any]]) -> list[list[Detection]]:
        if str(self._detector.device) == "cpu" and len(inputs) > 1:  # batches on a CPU take memory and save no time
            return [detections for one in inputs for detections in self.predict([one])]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            results = self._detector.generate_detections_one_batch(list(inputs), detection_threshold=self._confidence)
        failure = next((r["failure"] for r in results if r.get("failure")), None)
        if failure is None:
            return [clean_detections(_detection(d) for d in result["detections"]) for result in results]
        reason = (printed.getvalue().strip().splitlines() or [failure])[-1]
        if len(inputs) == 1:
            raise DetectionsError(
                f"megadetector failed on an image ({reason}); check that its packages fit each other and that the memory is large enough",
                code="megadetector_failed",
            )
        log.warning("detections: megadetector failed on a batch of %d images (%s); running it in two halves", len(inputs), reason)
        half = len(inputs) // 2
        return self.predict(inputs[:half]) + self.predict(inputs[half:])


def _detection(detection: dict[str, Any]) -> Detection:
    left, top, width, height = detection["bbox"]
    return Detection(detection["category"], detection["conf"], top, left, top + height, left + width)
