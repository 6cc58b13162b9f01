"""Tests of the report server."""
