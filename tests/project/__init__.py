"""Tests of the project itself: architecture, docs, language."""
