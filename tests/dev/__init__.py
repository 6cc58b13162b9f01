"""Tests of animl_pipeline.dev."""
