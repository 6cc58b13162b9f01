"""Crops → train, val and test by place: no place, burst or copy of a picture on two sides, and the test set frozen."""

from animl_pipeline.steps.splits.step import split_by_location

__all__ = ["split_by_location"]
