"""Animl's API: counts, exports of annotations, and where cameras stood, for one project.

Public doors: :class:`Animl`, :class:`Filters`, :class:`CameraDeployment`, :class:`Outcome`.
"""

from animl_pipeline.integrations.animl.client import AnimlClient, CameraDeployment, ExportTask
from animl_pipeline.integrations.animl.queries import ImageFilters

__all__ = ["AnimlClient", "CameraDeployment", "ImageFilters", "ExportTask"]
