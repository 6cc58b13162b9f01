"""Tests of animl_pipeline.storage."""
