"""The step detections: the boxes of each labelled image, reviewed by people or found by a detector such as MegaDetector."""

from animl_pipeline.steps.detections.choose_detector import check_ready
from animl_pipeline.steps.detections.detect_in_test_images import detect_in_test_images
from animl_pipeline.steps.detections.run_detector import find_animals
from animl_pipeline.steps.detections.step import detect_animals, run_detector_share

__all__ = ["check_ready", "detect_animals", "detect_in_test_images", "find_animals", "run_detector_share"]
