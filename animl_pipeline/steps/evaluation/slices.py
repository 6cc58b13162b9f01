"""The scores on parts of the test set: by light, by size of the box, by picture and by burst; and with the plan's equivalents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from animl_pipeline.core.records import EquivalentScores, Part
from animl_pipeline.steps.evaluation.bootstrap_intervals import Draws, interval, mean_of_held, rates
from animl_pipeline.steps.evaluation.metrics import numbers

BURST_S = 60.0
"""Pictures of one place that follow each other within so many seconds are a burst, where the export names no sequences."""

SIZES = ((0.1, "small (longer side below 10 % of the picture's)"), (0.3, "middling (10 to 30 %)"), (np.inf, "large (30 % and more)"))


def parts_of(scored: pd.DataFrame, ids: tuple[str, ...]) -> tuple[Part, ...]:
    """The scores by light (from the crop's own pixels: infrared pictures are grey, whatever the camera's clock says), by the
    box's longer side, and by picture and burst, whose name is the one that most of their crops got.
    """
    light = np.where(scored["infrared"].to_numpy(bool), "night (infrared, grey)", "day (in colours)")
    parts = [_part("light", name, scored[light == name], ids) for name in ("day (in colours)", "night (infrared, grey)")]
    longer = np.maximum(*((scored[f"{side}max"] - scored[f"{side}min"]).to_numpy(np.float64) for side in ("y", "x")))
    below = 0.0
    for limit, name in SIZES:
        parts.append(_part("box", name, scored[(longer >= below) & (longer < limit)], ids))
        below = limit
    for by, name, key in (("level", "images", _images(scored)), ("level", "bursts", bursts(scored))):
        voted, mixed = by_majority(scored, key)
        parts.append(_part(by, name, voted, ids).model_copy(update={"left_out": mixed}))
    return tuple(part for part in parts if part.examples)


def by_majority(scored: pd.DataFrame, key: pd.Series[str]) -> tuple[pd.DataFrame, int]:
    """One row a group: its label, and the class that most of its crops are called (of equal ones that of the larger summed probability).

    How many groups were left out, since people gave them several labels, comes back as well.
    """
    rows = scored.assign(group=key.to_numpy())
    votes = rows.groupby(["group", "predicted"], as_index=False).agg(votes=("probability", "size"), weight=("probability", "sum"))
    votes = votes.sort_values(["group", "votes", "weight", "predicted"], ascending=[True, False, False, True]).drop_duplicates("group")
    labels = rows.groupby("group").agg(
        class_id=("class_id", "first"),
        kinds=("class_id", "nunique"),
        location=("location", "first"),
        source=("source", "first"),
        image_id=("image_id", "first"),
    )
    joined = labels.join(votes.set_index("group")["predicted"]).reset_index()
    return joined[joined["kinds"] == 1].reset_index(drop=True), int((joined["kinds"] > 1).sum())


def bursts(scored: pd.DataFrame) -> pd.Series[str]:
    """A name for each crop's burst: the export's sequence; else pictures of one place within ``BURST_S`` of the one before; else the picture."""
    taken = pd.to_datetime(scored["taken"].where(scored["taken"] != ""), errors="coerce", utc=True, format="ISO8601")
    order = pd.DataFrame({"location": scored["location"], "taken": taken}).sort_values(["location", "taken"], kind="stable")
    gap = order["taken"].diff().dt.total_seconds()
    new = (order["location"] != order["location"].shift()) | ~(gap <= BURST_S)
    chain = ("chain " + new.cumsum().astype(str)).reindex(scored.index)
    chained = taken.notna() & (scored["location"] != "")
    alone = chain.where(chained, "picture " + _images(scored))
    named: pd.Series[str] = alone.where(scored["sequence"] == "", "sequence " + scored["sequence"].astype(str))
    return named


def credited(scored: pd.DataFrame, ids: tuple[str, ...], equivalents: Mapping[str, Sequence[str]]) -> EquivalentScores:
    """The scores where what the plan calls equivalent counts as right: ``{rat: [rodent]}``, a rat that is called rodent."""
    from sklearn.metrics import precision_recall_fscore_support

    named = credited_names(scored, equivalents)
    precision, recall, f1, support = precision_recall_fscore_support(scored["class_id"], named, labels=list(ids), zero_division=0.0)
    held = [i for i in range(len(ids)) if support[i]]
    return EquivalentScores(
        accuracy=float((named == scored["class_id"]).mean()),
        macro_f1=float(np.mean(f1[held])),
        classes={ids[i]: (float(precision[i]), float(recall[i]), float(f1[i])) for i in held},
    )


def credited_names(scored: pd.DataFrame, equivalents: Mapping[str, Sequence[str]]) -> pd.Series[str]:
    """What each crop was called, with an equivalent of its label counted as its label."""
    pairs = {(class_id, name) for class_id, names in equivalents.items() for name in names}
    right = [(class_id, name) in pairs for class_id, name in zip(scored["class_id"], scored["predicted"], strict=True)]
    return scored["predicted"].where(~np.asarray(right, bool), scored["class_id"])


def _part(by: str, name: str, rows: pd.DataFrame, ids: tuple[str, ...]) -> Part:
    if rows.empty:
        return Part(by=by, name=name, examples=0, locations=0, accuracy=0.0, macro_f1=None)
    truth, named = (numbers(rows[column], ids) for column in ("class_id", "predicted"))
    draws = Draws(rows)
    drawn = draws.confusions(truth, named, len(ids))
    whole = np.zeros((1, len(ids), len(ids)))
    np.add.at(whole[0], (truth, named), 1)
    several = len(set(truth)) > 1
    return Part(
        by=by,
        name=name,
        examples=len(rows),
        locations=len(set(rows["location"]) - {""}),
        accuracy=float((truth == named).mean()),
        macro_f1=float(mean_of_held(rates(whole)[2])[0]) if several else None,
        accuracy_interval=interval(np.trace(drawn, axis1=1, axis2=2) / np.maximum(drawn.sum(axis=(1, 2)), 1), draws.locations),
        macro_f1_interval=interval(mean_of_held(rates(drawn)[2]), draws.locations) if several else None,
    )


def _images(scored: pd.DataFrame) -> pd.Series[str]:
    return scored["source"].astype(str) + " " + scored["image_id"].astype(str)
