"""What the thresholds let through and what they miss: false alarms and missed invaders, as tables; and Animl's own table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from animl_pipeline.core.records import Threshold
from animl_pipeline.inference.scoring import probability_column

WHERE = ["location", "source", "image_id", "crop_id"]


def false_alarms(scored: pd.DataFrame, thresholds: Sequence[Threshold]) -> pd.DataFrame:
    """Crops that a class's threshold lets through though people say otherwise: invasive classes first, then the surest.

    Columns: class, group, label, probability, place, source, image_id, crop_id.
    """
    parts = [_alarms(scored, t) for t in sorted(thresholds, key=lambda t: t.group)]
    columns = ["class", "group", "class_id", "probability", *WHERE]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def missed_invaders(scored: pd.DataFrame, thresholds: Sequence[Threshold]) -> pd.DataFrame:
    """Crops of invasive classes that the model takes for something else, or that stay below the class's threshold; the least seen first.

    Columns: label, own (its probability), threshold, at_threshold (named or missed), predicted, probability, place, source,
    image_id, crop_id.
    """
    parts = []
    for t in (t for t in thresholds if t.group == "invasive"):
        own = scored[probability_column(t.id)].astype("float64")
        missed = (scored["class_id"] == t.id) & ((own < t.value) | (scored["predicted"] != t.id))
        below = np.where(own[missed] < t.value, "missed", "named")
        parts.append(scored[missed].assign(own=own[missed], threshold=t.value, at_threshold=below).sort_values(["own", "crop_id"]))
    columns = ["class_id", "own", "threshold", "at_threshold", "predicted", "probability", *WHERE]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def animl_table(scored: pd.DataFrame, named: pd.Series[str], ids: tuple[str, ...]) -> pd.DataFrame:
    """Animl's own table: cameraId, deploymentName, targetClass, TP, FP, FN, precision, recall, f1; a row a place and class that occurs.

    A place is a camera deployment; only a deployment without a name of its own (``<camera>-default``) says which camera it is of.
    ``named`` is what each crop was called, the plan's equivalents counted as right, as Animl scores its own models.
    """
    rows = []
    for loc, part in [*scored.groupby("location", sort=True), ("ALL", scored)]:
        camera, deployment = _camera(str(loc))
        called = named.loc[part.index]
        for c in ids:
            is_one, says = part["class_id"] == c, called == c
            tp, fp, fn = int((is_one & says).sum()), int((~is_one & says).sum()), int((is_one & ~says).sum())
            if tp + fp + fn:
                rows.append((camera, deployment, c, tp, fp, fn, _ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn)))
    columns = ["cameraId", "deploymentName", "targetClass", "TP", "FP", "FN", "precision", "recall", "f1"]
    return pd.DataFrame(rows, columns=columns)


def _alarms(scored: pd.DataFrame, t: Threshold) -> pd.DataFrame:
    own = scored[probability_column(t.id)].astype("float64")
    false = (scored["class_id"] != t.id) & (own >= t.value)
    rows = scored[false].assign(group=t.group, probability=own[false])
    rows["class"] = t.id
    return rows.sort_values(["probability", "crop_id"], ascending=[False, True])


def _camera(loc: str) -> tuple[str, str]:
    """Camera and deployment of a place, ``<source>/<location>``."""
    location = loc.split("/", 1)[-1]
    return (location.removesuffix("-default"), "default") if location.endswith("-default") else ("", location)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float(np.nan)
