"""Tests of animl_pipeline.inference."""
