"""Tests of animl_pipeline.serve."""
