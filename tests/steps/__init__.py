"""Tests of animl_pipeline.steps."""
