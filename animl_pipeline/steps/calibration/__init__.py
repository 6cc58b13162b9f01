"""A trained model → the same model whose card says how sure it really is, and from which probability on a class is named.

::

    step         the verb: calibrate_classifier
    temperature  one number that makes stated probabilities fit, found on val
    thresholds   a probability for each class, chosen on val for the plan's aims
"""

from animl_pipeline.steps.calibration.step import calibrate_classifier

__all__ = ["calibrate_classifier"]
