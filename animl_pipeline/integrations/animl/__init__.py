"""Animl's API for one project: counts, exports of annotations, where cameras stood, models and automation rules."""

from animl_pipeline.integrations.animl.camera_deployments import CameraDeployment
from animl_pipeline.integrations.animl.client import AnimlClient, ExportTask
from animl_pipeline.integrations.animl.queries import ImageFilters

__all__ = ["AnimlClient", "CameraDeployment", "ExportTask", "ImageFilters"]
