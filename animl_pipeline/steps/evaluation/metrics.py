"""The scores of predictions on the test set: by class, at the thresholds, and how well probabilities match the share of right answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.evaluation_results import Calibration, ClassScores, FalseBoxScores, Metrics, OtherAnimalScores, Threshold
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.inference.bootstrap_intervals import (
    BootstrapDraws,
    Floats,
    accuracies,
    mean_over_present_classes,
    percentile_interval,
    precision_recall_f1,
)
from animl_pipeline.inference.calibration_and_threshold_metrics import (
    count_as_parent,
    expected_calibration_error,
    operating_point,
    probability_column,
    probability_matrix,
    reliability_bins,
    rescale_temperature,
)

SIMULATIONS = 200
SEED = 0


def compute_metrics(scored: pd.DataFrame, ids: tuple[str, ...], unscored: tuple[str, ...] = ()) -> Metrics:
    """All scores of the predictions, with 95 % intervals by bootstrap over locations.

    Means are over the classes that the test set has. A class that is never predicted has precision 0. Average precision is that of
    one class against the rest, the sum over thresholds of (recall gained) x precision, as in scikit-learn.

    ``scored``: test crops of animals with ``class_id``, ``predicted``, ``location`` and ``p_<class id>``. ``unscored``: the model's classes
    for other animals and false boxes, if it has them. An animal that is predicted so is missed.
    """
    draws = BootstrapDraws(scored)
    outputs = (*ids, *unscored)
    truth = class_indices(scored["class_id"], ids)
    confusions = draws.confusion_matrices(truth, class_indices(scored["predicted"], outputs), len(outputs))
    precision, recall, f1 = (values[:, : len(ids)] for values in precision_recall_f1(confusions))
    scores = {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "average_precision": np.stack(
            [draws.average_precisions(scored[probability_column(c)].to_numpy(np.float64), truth == i) for i, c in enumerate(ids)], axis=1
        ),
    }
    macro = {name: mean_over_present_classes(values) for name, values in scores.items()}
    accuracy = accuracies(confusions)
    return Metrics(
        examples=len(scored),
        locations=_known_locations(scored),
        accuracy=float(accuracy[0]),
        macro_precision=float(macro["precision"][0]),
        macro_recall=float(macro["recall"][0]),
        macro_f1=float(macro["f1"][0]),
        macro_average_precision=float(macro["average_precision"][0]),
        classes=tuple(_class_scores(c, scored[truth == i], draws.count_locations(truth == i), i, scores) for i, c in enumerate(ids)),
        confusion=tuple(tuple(int(n) for n in row) for row in confusions[0][: len(ids)]),
        accuracy_interval=percentile_interval(accuracy, draws.locations),
        macro_f1_interval=percentile_interval(macro["f1"], draws.locations),
        macro_average_precision_interval=percentile_interval(macro["average_precision"], draws.locations),
    )


def score_false_boxes(scored: pd.DataFrame, nothing: str) -> FalseBoxScores:
    """How many false boxes are recognised, and how many animals are taken for one.

    ``scored``: all test crops, of animals and of false boxes.
    """
    is_false, given = scored["class_id"] == nothing, scored["predicted"] == nothing
    return FalseBoxScores(
        id=nothing,
        examples=int(is_false.sum()),
        locations=_known_locations(scored[is_false]),
        recognised=int((is_false & given).sum()),
        animals=int((~is_false & given).sum()),
    )


def score_other_animals(scored: pd.DataFrame, other_animal: str, nothing: str | None) -> OtherAnimalScores:
    """How many animals of no class of the plan are recognised as such, what the others are called, and how many of the plan's get this class."""
    is_other, given = scored["class_id"] == other_animal, scored["predicted"] == other_animal
    called = scored.loc[is_other & ~given, "predicted"].value_counts()
    return OtherAnimalScores(
        id=other_animal,
        examples=int(is_other.sum()),
        locations=_known_locations(scored[is_other]),
        recognised=int((is_other & given).sum()),
        animals=int((~is_other & (scored["class_id"] != nothing) & given).sum()),
        called={str(c): int(n) for c, n in called.items()},
    )


def class_indices(class_ids: pd.Series[str], ids: tuple[str, ...]) -> NDArray[np.int64]:
    """The index of each class id in ``ids``."""
    return np.asarray(class_ids.map({c: i for i, c in enumerate(ids)}), np.int64)


def _class_scores(class_id: str, rows: pd.DataFrame, locations: int, index: int, scores: dict[str, Floats]) -> ClassScores:
    """The scores of one class, from arrays [draws, classes]; ``locations`` counts unknown ones as well."""
    values: dict[str, Any] = {name: float(array[0, index]) if len(rows) else 0.0 for name, array in scores.items()}
    values |= {f"{name}_interval": percentile_interval(array[:, index], locations) for name, array in scores.items()}
    if rows.empty:
        values["average_precision"] = None
    return ClassScores(id=class_id, examples=len(rows), locations=_known_locations(rows), **values)


def _known_locations(rows: pd.DataFrame) -> int:
    return len(set(rows["location"]) - {""})


class ReliabilityDiagram(NamedTuple):
    """Points (mean confidence, share of right answers, crops) before and after temperature scaling."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]


def measure_calibration(scored: pd.DataFrame, card: ModelCard) -> Calibration:
    """Calibration errors before and after temperature scaling, and the share of crops that reach no threshold."""
    before, after, right = _confidences(scored, card)
    thresholds = np.array([np.inf if c in card.unscored_ids() else card.thresholds.get(c, 0.0) for c in card.class_ids()])
    known = (probability_matrix(scored, card.class_ids()) >= thresholds).any(axis=1)
    return Calibration(
        temperature=card.temperature,
        ece_before=expected_calibration_error(before, right),
        ece_after=expected_calibration_error(after, right),
        ece_limit_by_chance=ece_limit_by_chance(after),
        unknown_share=float((~known).mean()),
        accuracy_of_known=float(right[known].mean()) if known.any() else None,
    )


def reliability_diagram(scored: pd.DataFrame, card: ModelCard) -> ReliabilityDiagram:
    """The points of the reliability diagrams."""
    before, after, right = _confidences(scored, card)
    return ReliabilityDiagram(reliability_bins(before, right), reliability_bins(after, right))


def describe_calibration(c: Calibration) -> str:
    """Two sentences: the calibration error, and whether temperature scaling helped."""
    errors = f"The calibration error on the test set is {c.ece_after:.3f}; without the temperature ({c.temperature:.2f}) it is {c.ece_before:.3f}."
    chance = f"With so few examples, a perfectly calibrated model can have an error of up to {c.ece_limit_by_chance:.3f}."
    if c.ece_after < c.ece_before / 2:
        return f"{errors} Temperature scaling more than halved the error."
    if c.ece_after <= c.ece_limit_by_chance:
        return f"{errors} This is as good as can be measured. {chance}"
    if c.ece_after >= c.ece_before:
        return f"{errors} Temperature scaling did not help: it was fitted at other locations, and the test locations differ from those. {chance}"
    return f"{errors} Temperature scaling helped, but one temperature cannot fit all classes and locations. {chance}"


def _confidences(scored: pd.DataFrame, card: ModelCard) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Probability of the predicted class before and after temperature scaling, and whether the prediction is right."""
    after = probability_matrix(scored, card.class_ids())
    before = rescale_temperature(after, 1 / card.temperature)
    return before.max(axis=1), after.max(axis=1), (scored["class_id"] == scored["predicted"]).to_numpy()


def ece_limit_by_chance(confidence: NDArray[np.float64]) -> float:
    """The 95th percentile of the error of simulated answers that are right exactly as often as their probability says."""
    rng = np.random.default_rng(SEED)
    errors = [expected_calibration_error(confidence, rng.random(len(confidence)) < confidence) for _ in range(SIMULATIONS)]
    return float(np.percentile(errors, 95))


def score_thresholds(thresholds: Sequence[Threshold], scored: pd.DataFrame) -> tuple[Threshold, ...]:
    """The thresholds with their recall and precision on the test set; a parent's are those of the sums of its children's probabilities."""
    draws = BootstrapDraws(scored)
    return tuple(_score_threshold(t, count_as_parent(scored, t.id, t.children) if t.children else scored, draws) for t in thresholds)


def _score_threshold(threshold: Threshold, scored: pd.DataFrame, draws: BootstrapDraws) -> Threshold:
    is_class = (scored["class_id"] == threshold.id).to_numpy()
    reaches = scored[probability_column(threshold.id)].to_numpy(np.float64) >= threshold.value
    examples, hits, predicted = draws.sums(is_class), draws.sums(is_class & reaches), draws.sums(reaches)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = hits / examples, np.where(examples > 0, hits / predicted, np.nan)
    locations = draws.count_locations(is_class)
    return threshold.model_copy(
        update={
            "test": operating_point(scored, threshold.id, threshold.value),
            "recall_interval": percentile_interval(recall, locations),
            "precision_interval": percentile_interval(precision, locations),
        }
    )
