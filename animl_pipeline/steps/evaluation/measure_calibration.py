"""Calibration on the test set: how well probabilities match the share of right answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.evaluation_results import Calibration
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.inference.calibration_and_threshold_metrics import (
    expected_calibration_error,
    probability_matrix,
    reliability_bins,
    rescale_temperature,
)

SIMULATIONS = 200
SEED = 0


class ReliabilityDiagram(NamedTuple):
    """Points (mean confidence, share of right answers, crops) before and after temperature scaling."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]


def measure_calibration(scored: pd.DataFrame, card: ModelCard) -> Calibration:
    """Calibration errors before and after temperature scaling, and the share of crops that reach no threshold."""
    before, after, right = _confidences(scored, card)
    thresholds = np.array([np.inf if c in card.unscored_ids() else card.thresholds.get(c, 0.0) for c in card.class_ids()])
    known = (probability_matrix(scored, card.class_ids()) >= thresholds).any(axis=1)
    return Calibration(
        temperature=card.temperature,
        ece_before=expected_calibration_error(before, right),
        ece_after=expected_calibration_error(after, right),
        ece_limit_by_chance=ece_limit_by_chance(after),
        unknown_share=float((~known).mean()),
        accuracy_of_known=float(right[known].mean()) if known.any() else None,
    )


def reliability_diagram(scored: pd.DataFrame, card: ModelCard) -> ReliabilityDiagram:
    """The points of the reliability diagrams."""
    before, after, right = _confidences(scored, card)
    return ReliabilityDiagram(reliability_bins(before, right), reliability_bins(after, right))


def describe_calibration(c: Calibration) -> str:
    """Two sentences: the calibration error, and whether temperature scaling helped."""
    errors = f"The calibration error on the test set is {c.ece_after:.3f}; without the temperature ({c.temperature:.2f}) it is {c.ece_before:.3f}."
    chance = f"With so few examples, a perfectly calibrated model can have an error of up to {c.ece_limit_by_chance:.3f}."
    if c.ece_after < c.ece_before / 2:
        return f"{errors} Temperature scaling more than halved the error."
    if c.ece_after <= c.ece_limit_by_chance:
        return f"{errors} This is as good as can be measured. {chance}"
    if c.ece_after >= c.ece_before:
        return f"{errors} Temperature scaling did not help: it was fitted at other locations, and the test locations differ from those. {chance}"
    return f"{errors} Temperature scaling helped, but one temperature cannot fit all classes and locations. {chance}"


def _confidences(scored: pd.DataFrame, card: ModelCard) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Probability of the predicted class before and after temperature scaling, and whether the prediction is right."""
    after = probability_matrix(scored, card.class_ids())
    before = rescale_temperature(after, 1 / card.temperature)
    return before.max(axis=1), after.max(axis=1), (scored["class_id"] == scored["predicted"]).to_numpy()


def ece_limit_by_chance(confidence: NDArray[np.float64]) -> float:
    """The 95th percentile of the error of simulated answers that are right exactly as often as their probability says."""
    rng = np.random.default_rng(SEED)
    errors = [expected_calibration_error(confidence, rng.random(len(confidence)) < confidence) for _ in range(SIMULATIONS)]
    return float(np.percentile(errors, 95))
