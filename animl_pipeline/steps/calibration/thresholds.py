"""Choose each class's threshold on val or on out-of-fold answers, for the aims of the plan.

A threshold is chosen so that its aim holds at other locations with the plan's confidence. If none does, it is chosen so that the aim is
reached on the crops themselves, and if none does that, it is the nearest.

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
from animl_pipeline.config.evaluation import Group
from animl_pipeline.core.evaluation_results import OperatingPoint, Threshold
from animl_pipeline.inference.calibration_and_threshold_metrics import count_as_parent, operating_point, probability_column, probability_matrix
from animl_pipeline.steps.calibration.confidence_bounds import (
    PRECISION_SAMPLES,
    Floats,
    before_the_first_failure,
    correlation_within_locations,
    effective_number,
    lower_bound,
)

WITHOUT_EXAMPLES = 0.5
"""The threshold of a class that val has no example of."""
Bools = NDArray[np.bool_]


class _Evidence(NamedTuple):
    """How certain a bound must be, and how alike the answers of one location are."""

    confidence: float
    correlation: float


class _Rates(NamedTuple):
    """What the possible thresholds of a class give, from high to low: on val, or at other locations at worst."""

    recall: Floats
    precision: Floats
    false_alarms: Floats  # of 1000 crops

    def reach(self, aim: AimConfig) -> tuple[Bools, Bools]:
        """Which thresholds reach the aim's recall, and which its other parts."""
        everywhere = np.ones(len(self.recall), bool)
        recall = everywhere if aim.recall is None else self.recall >= aim.recall
        others = everywhere if aim.precision is None else self.precision >= aim.precision
        if aim.max_false_alarms_per_1000 is not None:
            others = others & (self.false_alarms <= aim.max_false_alarms_per_1000)
        return recall, others


class _Candidates(NamedTuple):
    """The possible thresholds of a class from high to low, and what each gives.

    ``crops_for_precision`` is the number of independent crops on which the bound of precision rests.
    """

    threshold: Floats
    on_val: _Rates
    bounds: _Rates
    crops_for_precision: Floats


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
    evidence = _Evidence(config.confidence, correlation_within_locations(val))
    own = [_choose_threshold(val, c, config.group_of(c), config.aim_of(c), floor, evidence) for c in classes]
    of_parents = []
    for parent, children in parents.items():
        group, aim = config.group_of_parent(children), config.aim_of_parent(parent, children)
        chosen = _choose_threshold(count_as_parent(val, parent, children), parent, group, aim, floor, evidence)
        of_parents.append(chosen.model_copy(update={"children": children}))
    return (*own, *of_parents)


def _choose_threshold(val: pd.DataFrame, class_id: str, group: Group, aim: AimConfig, floor: float, evidence: _Evidence) -> Threshold:
    value, shown = WITHOUT_EXAMPLES, False
    if (val["class_id"] == class_id).any():
        value, shown = _choose(_candidates(val, class_id, evidence), aim, evidence.confidence)
    value = _round_down(value)
    if group == "native":
        value = max(value, floor)
    point = operating_point(val, class_id, value)
    bound = _bound_at(val, class_id, value, point, evidence)
    return Threshold(
        id=class_id,
        group=group,
        aim=str(aim),
        value=value,
        aim_met=shown and meets_aim(bound, aim),
        met_on_val=meets_aim(point, aim),
        confidence=evidence.confidence,
        val=point,
        bound=bound,
    )


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


def _choose(candidates: _Candidates, aim: AimConfig, confidence: float) -> tuple[float, bool]:
    """The threshold for an aim, and whether the aim is shown to hold. If not all parts of it can be reached, recall goes before the others."""
    recall_shown, others_shown = candidates.bounds.reach(aim)
    if aim.precision is not None:
        others_shown &= before_the_first_failure(candidates.bounds.precision, candidates.crops_for_precision, aim.precision, confidence)
    recall, others = candidates.on_val.reach(aim)
    if aim.recall is not None:  # the highest threshold has the fewest false alarms
        ways = (recall_shown & others_shown, recall & others, recall_shown, recall)
        number, usable = next((i, way) for i, way in enumerate(ways) if way.any())
        return float(candidates.threshold[np.argmax(usable)]), number == 0
    for usable in (others_shown, others):  # of the thresholds with the highest recall the highest: animals that val lacks stay below it
        if usable.any():
            return float(candidates.threshold[np.argmax(np.where(usable, candidates.on_val.recall, -1.0))]), usable is others_shown
    closest = candidates.on_val.precision if aim.precision is not None else -candidates.on_val.false_alarms
    return float(candidates.threshold[np.argmax(closest)]), False


def _candidates(val: pd.DataFrame, class_id: str, evidence: _Evidence) -> _Candidates:
    """A candidate for each different probability, halfway to the next lower one, so that rounding does not matter."""
    p = val[probability_column(class_id)].to_numpy(np.float64)
    order = np.argsort(-p, kind="stable")
    p, is_class = p[order], (val["class_id"] == class_id).to_numpy()[order]
    ends = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)
    earlier_there = val["location"].iloc[order].groupby(val["location"].to_numpy()[order]).cumcount().to_numpy()
    hits, named, squares = np.cumsum(is_class)[ends], ends + 1.0, np.cumsum(2.0 * earlier_there + 1)[ends]
    thresholds = (p[ends] + np.append(p[ends[1:]], 0.0)) / 2
    rates = _Rates(hits / is_class.sum(), hits / named, 1000 * (named - hits) / len(p))
    independent = _independent_crops(named, squares)
    return _Candidates(thresholds, rates, _bounds(rates, val, class_id, independent, evidence), independent)


def _independent_crops(named: Floats, squares: Floats) -> Floats:
    """On how many independent crops precision rests: those of one location are right together or wrong together."""
    return effective_number(named, squares, 1.0) / PRECISION_SAMPLES


def _bounds(rates: _Rates, val: pd.DataFrame, class_id: str, independent: Floats, evidence: _Evidence) -> _Rates:
    """What holds at other locations with the plan's confidence."""
    of_class, of_all = (
        effective_number(np.array(float(len(crops))), np.square(crops.value_counts(), dtype=float).sum(), evidence.correlation)
        for crops in (val.loc[val["class_id"] == class_id, "location"], val["location"])
    )
    right = lower_bound(1 - rates.false_alarms / 1000, of_all, evidence.confidence)
    recall, precision = (lower_bound(*given, evidence.confidence) for given in ((rates.recall, of_class), (rates.precision, independent)))
    return _Rates(recall, precision, 1000 * (1 - right))


def _bound_at(val: pd.DataFrame, class_id: str, value: float, point: OperatingPoint, evidence: _Evidence) -> OperatingPoint:
    """An operating point with the bounds of its recall, precision and false alarms."""
    there = val.loc[val[probability_column(class_id)] >= value, "location"].value_counts().to_numpy(np.float64)
    rates = _Rates(*(np.array([v or 0.0]) for v in (point.recall, point.precision, point.false_alarms_per_1000)))
    independent = _independent_crops(there.sum(keepdims=True), np.square(there).sum(keepdims=True))
    recall, precision, alarms = (float(v[0]) for v in _bounds(rates, val, class_id, independent, evidence))
    known = {"recall": recall if point.recall is not None else None, "precision": precision if point.precision is not None else None}
    return point.model_copy(update=known | {"false_alarms_per_1000": alarms})


def _round_down(value: float) -> float:
    return float(np.floor(value * 1e6) / 1e6)
