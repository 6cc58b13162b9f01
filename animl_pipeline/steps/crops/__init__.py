"""Labelled boxes become pictures: the view of every animal, cut out once and kept without loss."""

from animl_pipeline.steps.crops.step import extract_crops, extract_crops_share

__all__ = ["extract_crops", "extract_crops_share"]
