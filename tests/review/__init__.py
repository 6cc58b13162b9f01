"""Tests of animl_pipeline.review."""
