"""The step crops: the part of the image around each labelled animal, as the classifier sees it, stored without loss."""

from animl_pipeline.steps.crops.step import extract_crops, extract_crops_share

__all__ = ["extract_crops", "extract_crops_share"]
