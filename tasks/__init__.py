"""Prefect tasks: one typed task for each step, and the retry policies."""
