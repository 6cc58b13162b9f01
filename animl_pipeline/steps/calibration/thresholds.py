"""Choose each class's threshold on val, for the aims of the plan.

Animl keeps every class whose probability reaches its threshold (confThreshold). If no class's does, the animal is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import AimConfig, ThresholdsConfig, UnknownConfig
from animl_pipeline.config.thresholds_gate_audit import Group
from animl_pipeline.core.evaluation_results import OperatingPoint, Threshold
from animl_pipeline.inference.calibration_and_threshold_metrics import count_as_parent, operating_point, probability_column, probability_matrix

WITHOUT_EXAMPLES = 0.5
"""The threshold of a class that val has no example of."""
MINIMUM = 0.5
"""The lowest threshold of a class whose aim has no recall. Above one half, an animal cannot get two such classes."""


class _Candidates(NamedTuple):
    """The possible thresholds of a class from high to low, and what each gives on val."""

    threshold: NDArray[np.float64]
    lowest: NDArray[np.float64]  # the lowest probability on val that reaches the threshold
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    false_alarms: NDArray[np.float64]  # of 1000 crops


def choose_thresholds(
    val: pd.DataFrame, classes: tuple[str, ...], config: ThresholdsConfig, parents: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> tuple[Threshold, ...]:
    """A threshold for each class, then for each parent. The floor for unknown animals raises those of native classes.

    Args:
        val: val crops with calibrated probabilities, as ``score_crops`` returns them. Crops of other classes are false boxes.
        classes: the class ids of the animals.
        config: the plan's section thresholds.
        parents: parent → its children. Its threshold is chosen on the sums of their probabilities, for crops of any of them.
    """
    floor = unknown_floor(val[val["class_id"].isin(classes)], classes, config.unknown) if config.unknown else 0.0
    own = [_choose_threshold(val, c, config.group_of(c), config.aim_of(c), floor) for c in classes]
    of_parents = [
        _choose_threshold(
            count_as_parent(val, parent, children), parent, config.group_of_parent(children), config.aim_of_parent(parent, children), floor
        ).model_copy(update={"children": children})
        for parent, children in parents.items()
    ]
    return (*own, *of_parents)


def _choose_threshold(val: pd.DataFrame, class_id: str, group: Group, aim: AimConfig, floor: float) -> Threshold:
    value = _round_down(_choose(val, class_id, aim))
    if group == "native":
        value = max(value, floor)
    point = operating_point(val, class_id, value)
    return Threshold(id=class_id, group=group, aim=str(aim), value=value, aim_met=meets_aim(point, aim), val=point)


def meets_aim(point: OperatingPoint, aim: AimConfig) -> bool:
    """Whether an operating point reaches every part of an aim. Without an example it does not."""
    return (
        point.examples > 0
        and (aim.max_false_alarms_per_1000 is None or point.false_alarms_per_1000 <= aim.max_false_alarms_per_1000)
        and (aim.recall is None or (point.recall or 0.0) >= aim.recall)
        and (aim.precision is None or (point.precision or 0.0) >= aim.precision)
    )


def unknown_floor(val: pd.DataFrame, classes: tuple[str, ...], config: UnknownConfig) -> float:
    """The lowest threshold of native classes, so that unknown species get no class.

    The share ``config.keep`` of the correctly predicted val crops stays at or above the floor. With ``config.held_out_classes``, crops of
    these classes stand for unknown species: the probability of their own class is removed. The floor is then the value, at most
    as high, that separates them best from the correctly predicted crops (Youden's J). This is optimistic: the network was trained
    on these classes; a truly unknown species may get higher probabilities.
    """
    probabilities = probability_matrix(val, classes)
    correct = np.sort(val.loc[val["class_id"] == val["predicted"], "probability"].to_numpy(np.float64))
    if not len(correct):
        return 0.0
    highest = float(correct[int(np.floor((1 - config.keep) * (len(correct) - 1)))])
    unknown = [_largest_without(probabilities[(val["class_id"] == c).to_numpy()], classes.index(c)) for c in config.held_out_classes]
    unknown_probabilities = np.sort(np.concatenate([np.empty(0), *unknown]))
    if not len(unknown_probabilities):
        return _round_down(highest)
    floors = np.unique(np.append(correct[correct <= highest], highest))
    kept = 1 - np.searchsorted(correct, floors, side="left") / len(correct)
    refused = np.searchsorted(unknown_probabilities, floors, side="left") / len(unknown_probabilities)
    return _round_down(float(floors[int(np.argmax(kept + refused))]))


def _largest_without(probabilities: NDArray[np.float64], class_number: int) -> NDArray[np.float64]:
    """The largest probability of each row without one class; the others are scaled to a sum of 1."""
    others = np.delete(probabilities, class_number, axis=1)
    return np.asarray((others / np.maximum(others.sum(axis=1, keepdims=True), 1e-37)).max(axis=1))


def _choose(val: pd.DataFrame, class_id: str, aim: AimConfig) -> float:
    """The threshold for an aim. If not all parts of the aim can be reached, recall goes before the others."""
    if not (val["class_id"] == class_id).any():
        return WITHOUT_EXAMPLES
    candidates = _candidates(val, class_id)
    reached = np.ones(len(candidates.threshold), bool)
    if aim.precision is not None:
        reached &= candidates.precision >= aim.precision
    if aim.max_false_alarms_per_1000 is not None:
        reached &= candidates.false_alarms <= aim.max_false_alarms_per_1000
    if aim.recall is not None:
        recalled = candidates.recall >= aim.recall
        usable = recalled & reached if (recalled & reached).any() else recalled
        return float(candidates.threshold[int(np.argmax(usable))])  # the highest one has the fewest false alarms
    allowed = candidates.lowest >= MINIMUM
    if not allowed.any():
        return MINIMUM
    if (reached & allowed).any():
        index = int(np.flatnonzero(reached & allowed)[-1])  # the lowest one has the highest recall
    else:
        closest = candidates.precision if aim.precision is not None else -candidates.false_alarms
        index = int(np.argmax(np.where(allowed, closest, -np.inf)))
    return max(MINIMUM, float(candidates.threshold[index]))


def _candidates(val: pd.DataFrame, class_id: str) -> _Candidates:
    """A candidate for each different probability, halfway to the next lower one, so that rounding does not matter."""
    p = val[probability_column(class_id)].to_numpy(np.float64)
    order = np.argsort(-p, kind="stable")
    p, is_class = p[order], (val["class_id"] == class_id).to_numpy()[order]
    ends = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)
    hits, predicted = np.cumsum(is_class)[ends], ends + 1.0
    thresholds = (p[ends] + np.append(p[ends[1:]], 0.0)) / 2
    return _Candidates(thresholds, p[ends], hits / is_class.sum(), hits / predicted, 1000 * (predicted - hits) / len(p))


def _round_down(value: float) -> float:
    return float(np.floor(value * 1e6) / 1e6)
