"""Animl's own evaluation table: true and false positives and false negatives for each location and class."""

from __future__ import annotations

import pandas as pd


def animl_table(scored: pd.DataFrame, predicted: pd.Series[str], ids: tuple[str, ...]) -> pd.DataFrame:
    """Animl's own table: cameraId, deploymentName, targetClass, TP, FP, FN, precision, recall, f1; one row per location and class.

    A location is a camera deployment. Only a deployment without a name of its own (``<camera>-default``) tells its camera.

    Args:
        scored: the test crops.
        predicted: their predicted classes; Animl counts the plan's equivalents as right.
        ids: the model's classes.
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
    return pd.DataFrame(rows, columns=["cameraId", "deploymentName", "targetClass", "TP", "FP", "FN", "precision", "recall", "f1"])


def _camera_and_deployment(location: str) -> tuple[str, str]:
    name = location.split("/", 1)[-1]
    return (name.removesuffix("-default"), "default") if name.endswith("-default") else ("", name)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
