"""Compare the new model (challenger) with the released one (champion) on the same test crops."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.evaluation_results import ClassComparison, Comparison
from animl_pipeline.core.model_card import ModelCard, ModelInput
from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, Floats, mean_over_present_classes, percentile_interval, precision_recall_f1
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.inference.score_crops import score_crops
from animl_pipeline.steps.evaluation.metrics import class_indices
from animl_pipeline.storage.store import Store

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

log = logging.getLogger(__name__)

OTHER = "$other"
"""Stands for all classes that only one of the two models knows. A class id cannot begin with $."""


class _Scores(NamedTuple):
    """A model's scores per class, each [draws, classes]."""

    recall: Floats
    f1: Floats
    average_precision: Floats


def compare_with_champion(
    scored: pd.DataFrame,
    ids: tuple[str, ...],
    thresholds: Mapping[str, float],
    champion: Artifact,
    classifier: Classifier,
    stored: ModelInput,
    store: Store,
) -> Comparison:
    """Compare both models on the test crops whose class both know. Each may predict any of its own classes.

    The champion is used as it was released: its package, temperature and model input. If its model input has another size or margin, its
    crops are extracted from the images again.

    ``scored``: the test crops of animals with the challenger's probabilities. ``ids``: the challenger's classes of animals.
    """
    card = classifier.card
    common = tuple(c for c in ids if c in card.animal_ids())
    rows = scored[scored["class_id"].isin(common)].reset_index(drop=True)
    crops = rows.drop(columns=["predicted", "probability", "infrared", *(c for c in rows if str(c).startswith(probability_column("")))])
    champion_rows = score_crops(crops, classifier, store, stored, "test crops, champion")
    log.info("compared with the released model %s on %d test crops", card.version, len(rows))
    return Comparison(
        champion=card.version,
        package=champion.digest,
        examples=len(rows),
        locations=len(set(rows["location"]) - {""}),
        left_out=len(scored) - len(rows),
        added_classes=tuple(c for c in ids if c not in common),
        removed_classes=tuple(c for c in card.animal_ids() if c not in ids),
        removed_invasive=tuple(c for c in _invasive_classes(card) if c not in ids),
        own_model_input=(card.model_input.size, card.model_input.margin) != (stored.size, stored.margin),
        **compare_scores((champion_rows, rows), common, (card.thresholds, thresholds)),
    )


def load_champion(champion: Artifact, store: Store) -> Classifier:
    """The classifier in the package of the released model.

    Raises:
        DamagedError: the package is missing or changed.
        PackageError: the package holds no model.
    """
    from animl_pipeline.inference.classifier import load_package

    return load_package(store.path(champion, "model.tar.gz"))


def _invasive_classes(card: ModelCard) -> list[str]:
    """The classes that are invasive by the plan in a card."""
    return [str(c) for c in (card.plan.get("thresholds") or {}).get("invasive", ())]


def compare_scores(tables: tuple[pd.DataFrame, pd.DataFrame], common: tuple[str, ...], thresholds: tuple[Mapping[str, float], ...]) -> dict[str, Any]:
    """Macro scores and class scores of champion and challenger. Both tables have the same crops in the same order."""
    rows = tables[1]
    if rows.empty:
        none: dict[str, Any] = {"macro_f1": (0, 0), "macro_f1_change": 0, "macro_f1_interval": None, "classes": ()}
        return none | {"macro_average_precision": (0, 0), "macro_average_precision_change": 0, "macro_average_precision_interval": None}
    draws = BootstrapDraws(rows)
    scores = [_score_classes(table, common, draws) for table in tables]
    values: dict[str, Any] = {}
    for name in ("f1", "average_precision"):
        champion, challenger = (mean_over_present_classes(getattr(s, name)) for s in scores)
        values |= _pair(f"macro_{name}", champion, challenger, draws.locations)
    compared = []
    for i, c in enumerate(common):
        is_class = (rows["class_id"] == c).to_numpy()
        if not is_class.any():
            continue
        of_class: dict[str, Any] = {}
        for name in _Scores._fields:
            champion, challenger = (getattr(s, name)[:, i] for s in scores)
            of_class |= _pair(name, champion, challenger, draws.count_locations(is_class))
        del of_class["average_precision"]
        compared.append(
            ClassComparison(
                id=c,
                examples=int(is_class.sum()),
                locations=len(set(rows.loc[is_class, "location"]) - {""}),
                **of_class,
                **_recall_at_thresholds(c, tables, thresholds, draws),
            )
        )
    return values | {"classes": tuple(compared)}


def _pair(name: str, champion: Floats, challenger: Floats, locations: int) -> dict[str, Any]:
    """Both values, their difference and its interval, as fields of a comparison."""
    change = challenger - champion
    return {
        name: (float(champion[0]), float(challenger[0])),
        f"{name}_change": float(change[0]),
        f"{name}_interval": percentile_interval(change, locations),
    }


def _score_classes(table: pd.DataFrame, common: tuple[str, ...], draws: BootstrapDraws) -> _Scores:
    truth = class_indices(table["class_id"], common)
    predicted = class_indices(table["predicted"].where(table["predicted"].isin(common), OTHER), (*common, OTHER))
    _, recall, f1 = precision_recall_f1(draws.confusion_matrices(truth, predicted, len(common) + 1))
    average_precision = [draws.average_precisions(table[probability_column(c)].to_numpy(np.float64), truth == i) for i, c in enumerate(common)]
    return _Scores(recall, f1, np.stack(average_precision, axis=1))


def _recall_at_thresholds(
    class_id: str, tables: tuple[pd.DataFrame, ...], thresholds: tuple[Mapping[str, float], ...], draws: BootstrapDraws
) -> dict[str, Any]:
    """A class's recall at each model's own threshold, which is what Animl's users see."""
    if any(class_id not in of_model for of_model in thresholds):
        return {}
    is_class = (tables[0]["class_id"] == class_id).to_numpy()
    reaches = [table[probability_column(class_id)].to_numpy(np.float64) >= t[class_id] for table, t in zip(tables, thresholds, strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        champion, challenger = (draws.sums(is_class & r) / draws.sums(is_class) for r in reaches)
    found = _pair("recall_at_threshold", champion, challenger, draws.count_locations(is_class))
    del found["recall_at_threshold_change"]
    return found
