"""Labelled boxes become pictures: the view of every animal, cut out once and kept without loss."""

from animl_pipeline.steps.crops.step import cut_crops, cut_share

__all__ = ["cut_crops", "cut_share"]
