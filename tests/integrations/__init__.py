"""Tests of animl_pipeline.integrations."""
