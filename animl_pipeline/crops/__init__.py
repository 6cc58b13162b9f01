"""Labelled boxes become pictures: the view of every animal, cut out once and kept as a lossless PNG."""

from animl_pipeline.crops.step import cut_crops

__all__ = ["cut_crops"]
