"""The tables of errors at the thresholds: false alarms, and missed invasive animals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from animl_pipeline.core.evaluation_results import Threshold
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column, probability_matrix
from animl_pipeline.inference.classifier import parent_probabilities

_CROP_COLUMNS = ["location", "source", "image_id", "crop_id", "link"]


def false_alarms(scored: pd.DataFrame, thresholds: Sequence[Threshold]) -> pd.DataFrame:
    """Crops that reach the threshold of a class that is not theirs: invasive classes first, then by falling probability.

    Columns: class (of the threshold), group, class_id (the true class), probability (of class), location, source, image_id, crop_id,
    link (to the image in Animl, or "").
    """
    tables = []
    for t in sorted(thresholds, key=lambda t: t.group):
        probability = _answered_by_parent(scored, t, thresholds) if t.children else scored[probability_column(t.id)].astype("float64")
        false = ~scored["class_id"].isin(t.children or (t.id,)) & (probability >= t.value)
        rows = scored[false].assign(group=t.group, probability=probability[false]).assign(**{"class": t.id})
        tables.append(rows.sort_values(["probability", "crop_id"], ascending=[False, True]))
    return _join(tables, ["class", "group", "class_id", "probability", *_CROP_COLUMNS])


def missed_invaders(scored: pd.DataFrame, thresholds: Sequence[Threshold]) -> pd.DataFrame:
    """Crops of invasive classes that get another class or stay below their class's threshold, lowest probability first.

    Columns: class_id, class_probability (of class_id), threshold, reaches_threshold, predicted, probability (of predicted), location,
    source, image_id, crop_id, link (to the image in Animl, or "").
    """
    tables = []
    for t in (t for t in thresholds if t.group == "invasive" and not t.children):
        probability = scored[probability_column(t.id)].astype("float64")
        missed = (scored["class_id"] == t.id) & ((probability < t.value) | (scored["predicted"] != t.id))
        rows = scored[missed].assign(class_probability=probability[missed], threshold=t.value, reaches_threshold=probability[missed] >= t.value)
        tables.append(rows.sort_values(["class_probability", "crop_id"]))
    return _join(tables, ["class_id", "class_probability", "threshold", "reaches_threshold", "predicted", "probability", *_CROP_COLUMNS])


def _answered_by_parent(scored: pd.DataFrame, parent: Threshold, thresholds: Sequence[Threshold]) -> pd.Series[float]:
    """What a parent answers for each crop; NaN where it is silent, because one of its children reaches its threshold."""
    own = probability_matrix(scored, parent.children)
    answers = parent_probabilities(own, parent.children, {t.id: t.value for t in thresholds}, {parent.id: parent.children})[:, 0]
    return pd.Series(np.where(answers > 0, answers, np.nan), scored.index)


def _join(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
