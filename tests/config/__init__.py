"""Tests of animl_pipeline.config."""
