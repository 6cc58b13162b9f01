"""Tests of flows and tasks."""
