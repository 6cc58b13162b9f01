"""Temperature scaling (Guo et al. 2017, arXiv 1706.04599): one number by which logits are divided, found on val."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.inference.scoring import rescale_temperature

COOLEST, HOTTEST = 0.1, 20.0
"""Beyond, a model is broken rather than badly calibrated."""


def fitted_temperature(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """The temperature under which the val labels are likeliest.

    Before val has spoken, log temperature is taken to be normal around 0 with deviation 1: against many crops this weighs
    nothing, but a handful without a mistake does not make the model infinitely sure.

    Args:
        probabilities: [n, classes] at temperature 1.
        targets: class numbers [n].
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        answers = rescale_temperature(probabilities, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(answers[rows, targets], 1e-300)).sum() + log_temperature**2 / 2)

    found = minimize_scalar(loss, bounds=(np.log(COOLEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-5})
    return round(float(np.exp(found.x)), 4)
