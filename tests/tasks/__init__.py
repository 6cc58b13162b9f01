"""Tests of the Prefect tasks."""
