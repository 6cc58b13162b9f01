"""Animl's own evaluation table: true and false positives and false negatives for each location and class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from animl_pipeline.inference.sequence_outcomes import SequenceOutcomes
    from animl_pipeline.steps.evaluation.production_score import SequenceData

COLUMNS = ["cameraId", "deploymentName", "targetClass", "TP", "FP", "FN", "precision", "recall", "f1"]


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
