"""The pictures that an export names, as local, verified copies. Only what is missing travels.

Each picture ends in one of two tables: images.parquet, with its content's sha256, or missing.parquet, with the reason. One
picture's fault never ends the others.
"""

from animl_pipeline.steps.images.estimate import Outlook, foresee_images
from animl_pipeline.steps.images.step import IMAGE_COLUMNS, MISSING_COLUMNS, fetch_images, location_of

__all__ = ["IMAGE_COLUMNS", "MISSING_COLUMNS", "Outlook", "fetch_images", "foresee_images", "location_of"]
