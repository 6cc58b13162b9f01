"""Tests of animl_pipeline.core."""
