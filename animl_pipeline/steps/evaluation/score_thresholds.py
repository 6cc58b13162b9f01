"""Score each class's threshold on the test set: recall, precision and false alarms with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from animl_pipeline.core.evaluation_results import Threshold
from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, percentile_interval
from animl_pipeline.inference.calibration_and_threshold_metrics import count_as_parent, operating_point, probability_column


def score_thresholds(thresholds: Sequence[Threshold], scored: pd.DataFrame) -> tuple[Threshold, ...]:
    """The thresholds with their recall and precision on the test set; a parent's are those of the sums of its children's probabilities."""
    draws = BootstrapDraws(scored)
    return tuple(_score_threshold(t, count_as_parent(scored, t.id, t.children) if t.children else scored, draws) for t in thresholds)


def _score_threshold(threshold: Threshold, scored: pd.DataFrame, draws: BootstrapDraws) -> Threshold:
    is_class = (scored["class_id"] == threshold.id).to_numpy()
    reaches = scored[probability_column(threshold.id)].to_numpy(np.float64) >= threshold.value
    examples, hits, predicted = draws.sums(is_class), draws.sums(is_class & reaches), draws.sums(reaches)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = hits / examples, np.where(examples > 0, hits / predicted, np.nan)
    locations = draws.count_locations(is_class)
    return threshold.model_copy(
        update={
            "test": operating_point(scored, threshold.id, threshold.value),
            "recall_interval": percentile_interval(recall, locations),
            "precision_interval": percentile_interval(precision, locations),
        }
    )
