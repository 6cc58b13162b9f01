"""Tests of animl_pipeline.plan_init."""
