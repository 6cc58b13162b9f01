"""The CSV tables beside the report: Animl's own evaluation table, false alarms, and missed invasive animals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from animl_pipeline.core.evaluation_results import Threshold
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column, probability_matrix
from animl_pipeline.inference.classifier import parent_probabilities

if TYPE_CHECKING:
    from animl_pipeline.inference.sequence_outcomes import SequenceOutcomes
    from animl_pipeline.steps.evaluation.production_score import SequenceData


COLUMNS = ["cameraId", "deploymentName", "targetClass", "TP", "FP", "FN", "precision", "recall", "f1"]
_CROP_COLUMNS = ["location", "source", "image_id", "crop_id", "link"]


def animl_table(scored: pd.DataFrame, predicted: pd.Series[str], ids: tuple[str, ...]) -> pd.DataFrame:
    """Animl's own table: cameraId, deploymentName, targetClass, TP, FP, FN, precision, recall, f1; one row per location and class.

    A location is a camera deployment. Only a deployment without a name of its own (``<camera>-default``) tells its camera.

    ``predicted``: their predicted classes; Animl counts the plan's equivalents as right.
    """
    rows = []
    for location, part in [*scored.groupby("location", sort=True), ("ALL", scored)]:
        camera, deployment = _camera_and_deployment(str(location))
        for c in ids:
            is_class, is_predicted = part["class_id"] == c, predicted.loc[part.index] == c
            tp, fp, fn = int((is_class & is_predicted).sum()), int((~is_class & is_predicted).sum()), int((is_class & ~is_predicted).sum())
            if tp + fp + fn:
                scores = (_ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn))
                rows.append((camera, deployment, c, tp, fp, fn, *scores))
    return pd.DataFrame(rows, columns=COLUMNS)


def sequence_table(data: SequenceData, outcomes: SequenceOutcomes, ids: tuple[str, ...]) -> pd.DataFrame:
    """The same table counted in sequences, with detector and classifier together, as Animl scores a model in service.

    A sequence with the class that was labelled so is a true positive, one that was not a false negative, and a sequence without the class
    that was labelled so a false positive. Counts are weighted where a location was sampled.
    """
    location, weight = data.sequences["location"], data.sequences["weight"].to_numpy(float)
    parts = []
    for i, c in enumerate(ids):
        counted = pd.DataFrame(
            {
                "location": location,
                "TP": weight * outcomes.hit[:, i],
                "FP": weight * outcomes.false_alarm[:, i],
                "FN": weight * (outcomes.actual & ~outcomes.hit)[:, i],
            }
        )
        by_location = counted.groupby("location", sort=True)[["TP", "FP", "FN"]].sum().reset_index()
        total = counted[["TP", "FP", "FN"]].sum().to_frame().T.assign(location="ALL")
        parts.append(pd.concat([by_location, total]).assign(targetClass=c, last=lambda rows: rows["location"] == "ALL"))
    rows = pd.concat(parts).sort_values(["last", "location"], kind="stable", ignore_index=True)
    rows = rows[rows[["TP", "FP", "FN"]].sum(axis=1) > 0]
    if (weight == 1).all():
        rows = rows.astype(dict.fromkeys(("TP", "FP", "FN"), "int64"))
    names = [_camera_and_deployment(str(name)) for name in rows["location"]]
    tp, fp, fn = (rows[c].to_numpy(float) for c in ("TP", "FP", "FN"))
    table: pd.DataFrame = rows[["targetClass", "TP", "FP", "FN"]].assign(
        cameraId=[camera for camera, _ in names],
        deploymentName=[deployment for _, deployment in names],
        precision=list(map(_ratio, tp, tp + fp)),
        recall=list(map(_ratio, tp, tp + fn)),
        f1=list(map(_ratio, 2 * tp, 2 * tp + fp + fn)),
    )[COLUMNS]
    return table


def _camera_and_deployment(location: str) -> tuple[str, str]:
    name = location.split("/", 1)[-1]
    return (name.removesuffix("-default"), "default") if name.endswith("-default") else ("", name)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


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
