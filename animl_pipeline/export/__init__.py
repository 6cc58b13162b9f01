"""An export of labels, kept untouched, and checked: COCO for Camera Traps from a path, an https or an s3 address, or from Animl.

Public door: :func:`export_annotations`.
"""

from animl_pipeline.export.step import export_annotations

__all__ = ["export_annotations"]
