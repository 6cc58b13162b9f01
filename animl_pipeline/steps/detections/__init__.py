"""Where the animals are: the reviewed boxes of the labels, and a MegaDetector's where there are none."""

from animl_pipeline.steps.detections.registry import check_ready
from animl_pipeline.steps.detections.run_detector import find_animals
from animl_pipeline.steps.detections.step import detect_animals, look_at_share

__all__ = ["check_ready", "detect_animals", "find_animals", "look_at_share"]
