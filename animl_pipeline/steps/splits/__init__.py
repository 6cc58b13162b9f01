"""The step `splits`: crops → train, val and test. No location, sequence or image is in two splits, and the test set stays frozen."""

from animl_pipeline.steps.splits.splits_given_by_plan import read_split_table
from animl_pipeline.steps.splits.step import split_by_location

__all__ = ["read_split_table", "split_by_location"]
