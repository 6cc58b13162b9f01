"""From which probability on a class is named: chosen on val for the plan's aims, class by class, as Animl applies them.

Animl keeps every class whose probability reaches its confThreshold; where none does, the animal stays unknown.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import AimConfig, ThresholdsConfig, UnknownConfig
from animl_pipeline.core.records import OperatingPoint, Threshold
from animl_pipeline.inference.scoring import operating_point, probability_column, probability_matrix

WITHOUT_EXAMPLES = 0.5
"""For a class that val holds no example of."""

LEAST = 0.5
"""A class whose aim asks for no recall is not named below: above one half no animal gets two such names."""


class _Ladder(NamedTuple):
    """What each possible threshold would give, from the highest to the lowest."""

    values: NDArray[np.float64]
    named: NDArray[np.float64]  # the least probability on val that reaches it
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    alarms: NDArray[np.float64]


def chosen_thresholds(val: pd.DataFrame, ids: tuple[str, ...], spec: ThresholdsConfig) -> tuple[Threshold, ...]:
    """A threshold a class, with what it gives on val; the floor for unknown animals raises those of native classes.

    Args:
        val: scored val crops.
        ids: the model's classes.
        spec: which classes are invasive, what to aim at, and the floor.
    """
    floor = unknown_floor(val, ids, spec.unknown) if spec.unknown else 0.0
    found = []
    for c in ids:
        group, aim = spec.group_of(c), spec.aim_of(c)
        value = _rounded_down(_chosen(val, c, aim))
        value = max(value, floor) if group == "native" else value
        reached = operating_point(val, c, value)
        found.append(Threshold(id=c, group=group, aim=str(aim), value=value, met=meets(reached, aim), val=reached))
    return tuple(found)


def meets(reached: OperatingPoint, aim: AimConfig) -> bool:
    """Whether all that is aimed at is reached; never without an example."""
    few_alarms = aim.max_false_alarms_per_1000 is None or reached.false_alarms_per_1000 <= aim.max_false_alarms_per_1000
    found = aim.recall is None or (reached.recall or 0.0) >= aim.recall
    rightly = aim.precision is None or (reached.precision or 0.0) >= aim.precision
    return reached.examples > 0 and few_alarms and found and rightly


def unknown_floor(val: pd.DataFrame, ids: tuple[str, ...], spec: UnknownConfig) -> float:
    """The probability below which a leading native class is no name: as many rightly named val crops as ``spec.keep`` stay above.

    With stand-ins for strangers (``spec.left_out``) the floor, at or below that, which parts them best from the rightly named
    (Youden's J). A stand-in is a val crop of that class whose own answer is struck out. This flatters: the network has learnt
    from the class, a true stranger may look surer.
    """
    probabilities = probability_matrix(val, ids)
    known = np.sort(val.loc[val["class_id"] == val["predicted"], "probability"].to_numpy(np.float64))
    if not len(known):
        return 0.0
    most = float(known[int(np.floor((1 - spec.keep) * (len(known) - 1)))])
    strangers = np.concatenate([np.empty(0), *(_without(probabilities[(val["class_id"] == c).to_numpy()], ids.index(c)) for c in spec.left_out)])
    if not len(strangers):
        return _rounded_down(most)
    floors = np.unique(np.append(known[known <= most], most))
    kept = 1 - np.searchsorted(known, floors, side="left") / len(known)
    refused = np.searchsorted(np.sort(strangers), floors, side="left") / len(strangers)
    return _rounded_down(float(floors[int(np.argmax(kept + refused))]))


def _without(probabilities: NDArray[np.float64], struck: int) -> NDArray[np.float64]:
    """The largest probability of each row when one class's answer is struck out and the others are filled up to 1."""
    others = np.delete(probabilities, struck, axis=1)
    return np.asarray((others / np.maximum(others.sum(axis=1, keepdims=True), 1e-37)).max(axis=1))


def _chosen(val: pd.DataFrame, class_id: str, aim: AimConfig) -> float:
    """The threshold for an aim; where several measures cannot be had at once, recall goes before the others."""
    if not (val["class_id"] == class_id).any():
        return WITHOUT_EXAMPLES
    ladder = _ladder(val, class_id)
    met = np.ones(len(ladder.values), bool)
    if aim.precision is not None:
        met &= ladder.precision >= aim.precision
    if aim.max_false_alarms_per_1000 is not None:
        met &= ladder.alarms <= aim.max_false_alarms_per_1000
    if aim.recall is not None:
        found = ladder.recall >= aim.recall
        return float(ladder.values[int(np.argmax(found & met if (found & met).any() else found))])  # the highest: fewest false alarms
    sure = ladder.named >= LEAST
    if not sure.any():
        return LEAST  # no answer on val reaches it; a guess below would name what cannot be told
    nearest = ladder.precision if aim.precision is not None else -ladder.alarms
    lowest = len(sure) - 1 - int(np.argmax((met & sure)[::-1]))  # most are found
    step = lowest if (met & sure).any() else int(np.argmax(np.where(sure, nearest, -np.inf)))
    return max(LEAST, float(ladder.values[step]))


def _ladder(val: pd.DataFrame, class_id: str) -> _Ladder:
    """A step for each different probability; its value lies halfway to the next lower one, so that a last bit decides nothing."""
    p = val[probability_column(class_id)].to_numpy(np.float64)
    order = np.argsort(-p, kind="stable")
    p, hit = p[order], (val["class_id"] == class_id).to_numpy()[order]
    ends = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)
    hits, named = np.cumsum(hit)[ends], ends + 1.0
    values = (p[ends] + np.append(p[ends[1:]], 0.0)) / 2
    return _Ladder(values, p[ends], hits / hit.sum(), hits / named, 1000 * (named - hits) / len(p))


def _rounded_down(value: float) -> float:
    return float(np.floor(value * 1e6) / 1e6)
