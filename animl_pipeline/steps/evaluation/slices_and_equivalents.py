"""Scores on slices of the test set: day and night, size of the box, whole images and sequences. Also scores with equivalent classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from animl_pipeline.core.evaluation_results import EquivalentScores, SliceScores
from animl_pipeline.inference.bootstrap_intervals import (
    BootstrapDraws,
    accuracies,
    mean_over_present_classes,
    percentile_interval,
    precision_recall_f1,
)
from animl_pipeline.steps.evaluation.metrics import class_indices

MAX_GAP_S = 60.0
"""If the export has no sequences, images of one location are one sequence while each follows within this many seconds."""
BOX_SIZES = (("small (longer side under 10 % of the image)", 0.0, 0.1), ("medium (10 to 30 %)", 0.1, 0.3), ("large (30 % or more)", 0.3, np.inf))


def score_slices(scored: pd.DataFrame, ids: tuple[str, ...]) -> tuple[SliceScores, ...]:
    """The scores of each slice that has examples.

    Night means that the crop's pixels have no colour, as in infrared images. A slice by size uses the longer side of the box. An image or
    sequence gets the class that most of its crops get.
    """
    night = scored["infrared"].to_numpy(bool)
    height, width = (scored[f"{axis}max"].to_numpy(np.float64) - scored[f"{axis}min"].to_numpy(np.float64) for axis in "yx")
    longer_side = np.maximum(height, width)
    found = [
        _score_slice("light", "day (in colour)", scored[~night], ids),
        _score_slice("light", "night (infrared, grey)", scored[night], ids),
        *(_score_slice("box", name, scored[(longer_side >= low) & (longer_side < high)], ids) for name, low, high in BOX_SIZES),
    ]
    for name, groups in (("images", _image_names(scored)), ("sequences", name_sequences(scored))):
        voted, several_classes = vote_by_group(scored, groups)
        found.append(_score_slice("level", name, voted, ids).model_copy(update={"left_out": several_classes}))
    return tuple(s for s in found if s.examples)


def vote_by_group(scored: pd.DataFrame, groups: pd.Series[str]) -> tuple[pd.DataFrame, int]:
    """One row per group: its class, and the class that most of its crops are predicted as.

    In a tie the class with the larger sum of probabilities wins. Groups whose crops have several true classes are left out; their
    number comes back as well.
    """
    rows = scored.assign(group=groups.to_numpy())
    votes = rows.groupby(["group", "predicted"], as_index=False).agg(votes=("probability", "size"), weight=("probability", "sum"))
    votes = votes.sort_values(["group", "votes", "weight", "predicted"], ascending=[True, False, False, True]).drop_duplicates("group")
    first = rows.groupby("group")[["class_id", "location", "source", "image_id"]].first()
    first = first.assign(classes=rows.groupby("group")["class_id"].nunique(), predicted=votes.set_index("group")["predicted"]).reset_index()
    return first[first["classes"] == 1].reset_index(drop=True), int((first["classes"] > 1).sum())


def name_sequences(scored: pd.DataFrame) -> pd.Series[str]:
    """A name for each crop's sequence: the export's, else that of images within ``MAX_GAP_S``, else the image's."""
    taken = pd.to_datetime(scored["taken"].where(scored["taken"] != ""), errors="coerce", utc=True, format="ISO8601")
    order = pd.DataFrame({"location": scored["location"], "taken": taken}).sort_values(["location", "taken"], kind="stable")
    gap = order["taken"].diff().dt.total_seconds()
    begins = (order["location"] != order["location"].shift()) | ~(gap <= MAX_GAP_S)
    by_time = ("time " + begins.cumsum().astype(str)).reindex(scored.index)
    names = by_time.where(taken.notna() & (scored["location"] != ""), "image " + _image_names(scored))
    found: pd.Series[str] = names.where(scored["sequence"] == "", "sequence " + scored["sequence"].astype(str))
    return found


def score_with_equivalents(scored: pd.DataFrame, ids: tuple[str, ...], equivalents: Mapping[str, Sequence[str]]) -> EquivalentScores:
    """The scores if equivalent classes count as right: with ``{rat: [rodent]}``, a rat predicted as rodent."""
    from sklearn.metrics import precision_recall_fscore_support

    predicted = apply_equivalents(scored, equivalents)
    precision, recall, f1, examples = precision_recall_fscore_support(scored["class_id"], predicted, labels=list(ids), zero_division=0.0)
    present = [i for i in range(len(ids)) if examples[i]]
    return EquivalentScores(
        accuracy=float((predicted == scored["class_id"]).mean()),
        macro_f1=float(np.mean(f1[present])),
        classes={ids[i]: (float(precision[i]), float(recall[i]), float(f1[i])) for i in present},
    )


def apply_equivalents(scored: pd.DataFrame, equivalents: Mapping[str, Sequence[str]]) -> pd.Series[str]:
    """The predicted classes, with an equivalent of the true class replaced by the true class."""
    pairs = {(class_id, other) for class_id, others in equivalents.items() for other in others}
    equivalent = [pair in pairs for pair in zip(scored["class_id"], scored["predicted"], strict=True)]
    return scored["predicted"].where(~np.asarray(equivalent, bool), scored["class_id"])


def _score_slice(by: str, name: str, rows: pd.DataFrame, ids: tuple[str, ...]) -> SliceScores:
    if rows.empty:
        return SliceScores(by=by, name=name, examples=0, locations=0, accuracy=0.0, macro_f1=None)
    draws = BootstrapDraws(rows)
    confusions = draws.confusion_matrices(class_indices(rows["class_id"], ids), class_indices(rows["predicted"], ids), len(ids))
    accuracy = accuracies(confusions)
    f1 = mean_over_present_classes(precision_recall_f1(confusions)[2]) if rows["class_id"].nunique() > 1 else None
    return SliceScores(
        by=by,
        name=name,
        examples=len(rows),
        locations=len(set(rows["location"]) - {""}),
        accuracy=float(accuracy[0]),
        macro_f1=None if f1 is None else float(f1[0]),
        accuracy_interval=percentile_interval(accuracy, draws.locations),
        macro_f1_interval=None if f1 is None else percentile_interval(f1, draws.locations),
    )


def _image_names(scored: pd.DataFrame) -> pd.Series[str]:
    return scored["source"].astype(str) + " " + scored["image_id"].astype(str)
