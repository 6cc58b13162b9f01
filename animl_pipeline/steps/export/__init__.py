"""The export step: labels from Animl, COCO for Camera Traps, LILA, class folders, Camtrap DP or MegaDetector, as tables.

:func:`export_annotations` runs the step; :func:`count_validated` counts new labels in Animl. :func:`common_base` finds the folder
of images that a Camtrap DP names by their URLs; :func:`describe_locations` says which locations were merged or are unknown.
"""

from animl_pipeline.steps.export.animl_incremental_export import count_validated
from animl_pipeline.steps.export.camtrap_dp_observations import common_base
from animl_pipeline.steps.export.problems import describe_locations
from animl_pipeline.steps.export.step import STEP, export_annotations

__all__ = ["STEP", "common_base", "count_validated", "describe_locations", "export_annotations"]
