"""Metrics of predicted probabilities: calibration error, reliability bins, precision and recall at a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.evaluation_results import OperatingPoint

if TYPE_CHECKING:
    pass


BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017 (arXiv:1706.04599)."""


def probability_column(class_id: str) -> str:
    """Name of the column with a class's probability."""
    return f"p_{class_id}"


def probability_matrix(scored: pd.DataFrame, ids: tuple[str, ...]) -> NDArray[np.float64]:
    """The probabilities of scored crops, float64 [n, classes]."""
    return scored[[probability_column(c) for c in ids]].to_numpy(np.float64)


def rescale_temperature(probabilities: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """The probabilities at ``factor`` times the temperature: softmax(log p / factor), because log p equals the logits up to a constant."""
    logits = np.log(np.maximum(probabilities, 1e-37)) / factor
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def reliability_bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each bin of confidence that is not empty: mean confidence, share of right predictions, number of crops. Shape [bins, 3]."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    number = np.bincount(bins, minlength=BINS).astype(float)
    used = number > 0
    means = [np.bincount(bins, v, BINS)[used] / number[used] for v in (confidence, right.astype(float))]
    return np.stack([*means, number[used]], axis=1)


def expected_calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """The mean over crops of |confidence - share of right predictions| in the crop's bin."""
    table = reliability_bins(confidence, right)
    return float((np.abs(table[:, 0] - table[:, 1]) * table[:, 2]).sum() / max(1, len(confidence)))


def count_as_parent(scored: pd.DataFrame, parent: str, children: Sequence[str]) -> pd.DataFrame:
    """The scored crops with the children as one class: crops of any child have the parent's id, and its column has the sum of theirs."""
    sums = np.minimum(probability_matrix(scored, tuple(children)).sum(axis=1), 1.0)
    of_parent = scored["class_id"].where(~scored["class_id"].isin(children), parent)
    return scored.assign(**{"class_id": of_parent, probability_column(parent): sums})


def operating_point(scored: pd.DataFrame, class_id: str, threshold: float) -> OperatingPoint:
    """Recall, precision and false alarms of a class at a threshold, on these crops."""
    named = scored[probability_column(class_id)].to_numpy(np.float64) >= threshold
    is_class = (scored["class_id"] == class_id).to_numpy()
    hits, false_alarms = int((named & is_class).sum()), int((named & ~is_class).sum())
    return OperatingPoint(
        examples=int(is_class.sum()),
        locations=len(set(scored.loc[is_class, "location"]) - {""}),
        recall=hits / int(is_class.sum()) if is_class.any() else None,
        precision=hits / (hits + false_alarms) if hits + false_alarms else None,
        false_alarms_per_1000=1000 * false_alarms / max(1, len(scored)),
    )
