"""Calibrate a trained model on val: a temperature for its probabilities, and a threshold for each class."""

from animl_pipeline.steps.calibration.step import STEP, calibrate_classifier

__all__ = ["STEP", "calibrate_classifier"]
