"""An export of labels, kept untouched, and checked: COCO for Camera Traps from a path, an https or an s3 address, or from Animl.

Public doors: :func:`export_annotations`, and :func:`count_validated` for what is new since.
"""

from animl_pipeline.steps.export.count_validated import count_validated
from animl_pipeline.steps.export.step import export_annotations

__all__ = ["count_validated", "export_annotations"]
