"""Prefect flows: train a model, release it, roll it back, and watch for new labels."""
