"""Whether the model's probabilities mean what they say, and what its thresholds reach, on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.records import Calibration, ModelCard, Threshold
from animl_pipeline.inference.scoring import (
    expected_calibration_error,
    operating_point,
    probability_column,
    probability_matrix,
    reliability_bins,
    rescale_temperature,
)
from animl_pipeline.steps.evaluation.bootstrap_intervals import Draws, interval

PERFECT_DRAWS = 200
SEED = 0


class Reliability(NamedTuple):
    """Points (mean confidence, share right, crops) without and with the temperature."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]


def calibration_of(scored: pd.DataFrame, card: ModelCard) -> Calibration:
    """Calibration errors before and after the temperature, and how many crops reach no threshold."""
    before, after, right = _sides(scored, card)
    named = _reaches(scored, card)
    return Calibration(
        temperature=card.temperature,
        before=expected_calibration_error(before, right),
        after=expected_calibration_error(after, right),
        by_chance=_by_chance(after),
        unknown=float((~named).mean()),
        right_if_named=float(right[named].mean()) if named.any() else None,
    )


def reliability_of(scored: pd.DataFrame, card: ModelCard) -> Reliability:
    """The points of the reliability diagram."""
    before, after, right = _sides(scored, card)
    return Reliability(reliability_bins(before, right), reliability_bins(after, right))


def tested_thresholds(thresholds: Sequence[Threshold], scored: pd.DataFrame) -> tuple[Threshold, ...]:
    """The thresholds with what they reach on test."""
    draws = Draws(scored)
    return tuple(_tested(t, scored, draws) for t in thresholds)


def said_of_calibration(c: Calibration) -> str:
    """What the calibration did, in words; where the error is not at most half of what it was, why not."""
    told = f"The calibration error on test is {c.after:.3f}, without the temperature ({c.temperature:.2f}) it would be {c.before:.3f}"
    if c.after < c.before / 2:
        return f"{told}: more than halved."
    if c.after <= c.by_chance:
        return f"{told}. It is not halved, and need not be: on so few examples a perfectly calibrated model may show up to {c.by_chance:.3f}."
    if c.after >= c.before:
        return (
            f"{told}. The temperature did not help here: it was found on val, whose places differ from the test places more than the temperature "
            f"could mend (by chance alone: up to {c.by_chance:.3f})."
        )
    return (
        f"{told}: better, but not halved. One temperature moves all classes and places alike, and val and test are different places "
        f"(by chance alone: up to {c.by_chance:.3f})."
    )


def _sides(scored: pd.DataFrame, card: ModelCard) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Confidence before and after the temperature, and whether the name is right."""
    after = probability_matrix(scored, card.class_ids())
    before = rescale_temperature(after, 1 / card.temperature)
    return before.max(axis=1), after.max(axis=1), (scored["class_id"] == scored["predicted"]).to_numpy()


def _by_chance(confidence: NDArray[np.float64]) -> float:
    """Below what the error stays, 95 times of 100, of answers that are right exactly as often as they say; drawn with a fixed seed."""
    rng = np.random.default_rng(SEED)
    return float(np.percentile([expected_calibration_error(confidence, rng.random(len(confidence)) < confidence) for _ in range(PERFECT_DRAWS)], 95))


def _reaches(scored: pd.DataFrame, card: ModelCard) -> NDArray[np.bool_]:
    """Whether any class's probability reaches its threshold."""
    if not card.thresholds:
        return np.ones(len(scored), bool)
    floors = np.array([card.thresholds.get(c, 0.0) for c in card.class_ids()])
    return np.asarray((probability_matrix(scored, card.class_ids()) >= floors).any(axis=1))


def _tested(threshold: Threshold, scored: pd.DataFrame, draws: Draws) -> Threshold:
    is_one = (scored["class_id"] == threshold.id).to_numpy()
    named = scored[probability_column(threshold.id)].to_numpy(np.float64) >= threshold.value
    ones, hits, names = (draws.sums(v.astype(np.float64)) for v in (is_one, is_one & named, named))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = hits / ones, np.where(ones > 0, hits / names, np.nan)
    locations = draws.locations_of(is_one) if is_one.any() else 0
    return threshold.model_copy(
        update={
            "test": operating_point(scored, threshold.id, threshold.value),
            "recall_interval": interval(recall, locations),
            "precision_interval": interval(precision, locations),
        }
    )
