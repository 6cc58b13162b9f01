"""The step detections: the boxes of each labelled image, reviewed by people or found by a detector such as MegaDetector."""

from typing import TYPE_CHECKING

from animl_pipeline.core.lazy_exports import lazy_exports
from animl_pipeline.steps.detections.choose_detector import check_ready

if TYPE_CHECKING:
    from animl_pipeline.steps.detections.boxes_of_test_images import detect_in_test_images
    from animl_pipeline.steps.detections.run_detector import find_animals
    from animl_pipeline.steps.detections.step import detect_animals, run_detector_share

__all__ = ["check_ready", "detect_animals", "detect_in_test_images", "find_animals", "run_detector_share"]
__getattr__ = lazy_exports(
    __name__, detect_animals="step", run_detector_share="step", find_animals="run_detector", detect_in_test_images="boxes_of_test_images"
)
