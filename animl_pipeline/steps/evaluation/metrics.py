"""The scores of predictions on the test set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.evaluation_results import ClassScores, FalseBoxScores, Metrics, OtherAnimalScores
from animl_pipeline.inference.bootstrap_intervals import (
    BootstrapDraws,
    Floats,
    accuracies,
    mean_over_present_classes,
    percentile_interval,
    precision_recall_f1,
)
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column


def compute_metrics(scored: pd.DataFrame, ids: tuple[str, ...], unscored: tuple[str, ...] = ()) -> Metrics:
    """All scores of the predictions, with 95 % intervals by bootstrap over locations.

    Means are over the classes that the test set has. A class that is never predicted has precision 0. Average precision is that of
    one class against the rest, the sum over thresholds of (recall gained) x precision, as in scikit-learn.

    Args:
        scored: test crops of animals with ``class_id``, ``predicted``, ``location`` and ``p_<class id>``.
        ids: the model's classes of animals.
        unscored: the model's classes for other animals and false boxes, if it has them. An animal that is predicted so is missed.
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

    Args:
        scored: all test crops, of animals and of false boxes.
        nothing: the class for false boxes.
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
    """How many animals of no class of the plan are recognised as such, what the others are called, and how many of the plan's get this class.

    Args:
        scored: all test crops.
        other_animal: the class for other animals.
        nothing: the class for false boxes, if there is one.
    """
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
