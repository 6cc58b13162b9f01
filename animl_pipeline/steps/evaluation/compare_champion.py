"""Champion against challenger: both answer the same test crops, each through its own view, and are compared pair by pair."""

from __future__ import annotations

import logging
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.records import Artifact, ClassComparison, Comparison, ModelCard, ModelInput
from animl_pipeline.inference.scoring import probability_column, score_crops
from animl_pipeline.steps.evaluation.bootstrap_intervals import Draws, interval, mean_of_held, rates
from animl_pipeline.steps.evaluation.metrics import numbers
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)

OTHER = "$other"
"""Whatever else a model knows is one more class; no class may be called so."""

ANSWERS = ["predicted", "probability", "infrared"]


class _Side(NamedTuple):
    """A model's figures on the common crops and, first axis, in each draw."""

    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    precision_average: NDArray[np.float64]


def compare(
    scored: pd.DataFrame, ids: tuple[str, ...], thresholds: Mapping[str, float], champion: Artifact, stored: ModelInput, store: Store
) -> tuple[Comparison, pd.DataFrame]:
    """The comparison on test crops whose class both models know, and the champion's scored crops.

    The champion is asked as it was released: its own package, temperature and view; where its view has another size or margin, its
    crops are cut anew from the pictures. Each model may answer with any of its classes.

    Args:
        scored: the test crops with the challenger's answers.
        ids: the challenger's classes.
        thresholds: the challenger's, by class; the champion has its own.
        champion: the package step of the released model.
        stored: the view that the stored crops show.
        store: where crops, pictures and packages are.

    Raises:
        DamagedError: the store lacks the champion's package.
        PackageError: it does not hold a model.
    """
    from animl_pipeline.inference.classifier import Classifier

    with tempfile.TemporaryDirectory() as folder, tarfile.open(store.path(champion, "model.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
        classifier = Classifier.load(Path(folder))
    own = classifier.card.class_ids()
    common = tuple(c for c in ids if c in own)
    rows = scored[scored["class_id"].isin(common)].reset_index(drop=True)
    plain = rows.drop(columns=[*ANSWERS, *(probability_column(c) for c in ids)])
    answers = score_crops(plain, classifier, store, stored, "test crops, champion")
    log.info("compared with the released model %s on %d test crops", classifier.card.version, len(rows))
    comparison = _compared(rows, answers, common, (classifier.card.thresholds, thresholds)).model_copy(
        update={
            "champion": classifier.card.version,
            "package": champion.digest,
            "left_out": len(scored) - len(rows),
            "new": tuple(c for c in ids if c not in own),
            "gone": tuple(c for c in own if c not in ids),
            "gone_invasive": tuple(c for c in _invasive(classifier.card) if c not in ids),
            "own_view": (classifier.card.model_input.size, classifier.card.model_input.margin) != (stored.size, stored.margin),
        }
    )
    return comparison, answers


def _invasive(card: ModelCard) -> list[str]:
    """The classes that a card's plan calls invasive."""
    thresholds = card.plan.get("thresholds") or {}
    return [str(c) for c in thresholds.get("invasive", ())]


def _compared(challenger: pd.DataFrame, champion: pd.DataFrame, common: tuple[str, ...], thresholds: tuple[Mapping[str, float], ...]) -> Comparison:
    """The figures of two tables of the same crops, row by row."""
    if challenger.empty:
        return _NOTHING_IN_COMMON
    draws = Draws(challenger)
    whole, drawn = ([_side(table, common, d) for table in (champion, challenger)] for d in (None, draws))
    held = [i for i, c in enumerate(common) if (challenger["class_id"] == c).any()]
    macros = {name: [float(getattr(side, name)[0, held].mean()) if held else 0.0 for side in whole] for name in ("f1", "precision_average")}
    macro_draws = {name: mean_of_held(getattr(drawn[1], name)[:, held]) - mean_of_held(getattr(drawn[0], name)[:, held]) for name in macros}
    changes = {name: interval(values, draws.locations) for name, values in macro_draws.items()} if held else dict.fromkeys(macros)
    return Comparison(
        champion="", package="0" * 64, left_out=0, new=(), gone=(), own_view=False,
        examples=len(challenger),
        locations=len(set(challenger["location"]) - {""}),
        macro_f1=(macros["f1"][0], macros["f1"][1]),
        macro_f1_change=macros["f1"][1] - macros["f1"][0],
        macro_f1_interval=changes["f1"],
        macro_average_precision=(macros["precision_average"][0], macros["precision_average"][1]),
        macro_average_precision_change=macros["precision_average"][1] - macros["precision_average"][0],
        macro_average_precision_interval=changes["precision_average"],
        classes=tuple(
            _difference(i, common[i], challenger, whole, drawn, draws).model_copy(
                update=_named(common[i], (champion, challenger), thresholds, draws)
            )
            for i in held
        ),
    )  # fmt: skip


_NOTHING_IN_COMMON = Comparison(
    champion="", package="0" * 64, examples=0, locations=0, left_out=0, new=(), gone=(), own_view=False, macro_f1=(0, 0), macro_f1_change=0,
    macro_f1_interval=None, macro_average_precision=(0, 0), macro_average_precision_change=0, macro_average_precision_interval=None, classes=(),
)  # fmt: skip


def _named(class_id: str, tables: tuple[pd.DataFrame, ...], thresholds: tuple[Mapping[str, float], ...], draws: Draws) -> dict[str, Any]:
    """The recall of a class at each model's own threshold, which is what Animl's users see."""
    if any(class_id not in known for known in thresholds):
        return {}
    is_one = (tables[0]["class_id"] == class_id).to_numpy()
    hits = [
        is_one & (table[probability_column(class_id)].to_numpy(np.float64) >= known[class_id])
        for table, known in zip(tables, thresholds, strict=True)
    ]
    ones, *sums = (draws.sums(values.astype(np.float64)) for values in (is_one, *hits))
    with np.errstate(invalid="ignore", divide="ignore"):
        change = (sums[1] - sums[0]) / ones
    named = tuple(float(h.sum() / is_one.sum()) for h in hits)
    return {"named": named, "named_interval": interval(change, draws.locations_of(is_one))}


def _difference(i: int, class_id: str, rows: pd.DataFrame, whole: list[_Side], drawn: list[_Side], draws: Draws) -> ClassComparison:
    is_one = (rows["class_id"] == class_id).to_numpy()
    locations = draws.locations_of(is_one)
    recall, f1, ap = ([float(values[0, i]) for values in pair] for pair in zip(*whole, strict=True))
    ends = [interval(pair[1][:, i] - pair[0][:, i], locations) for pair in zip(*drawn, strict=True)]
    return ClassComparison(
        id=class_id,
        examples=int(is_one.sum()),
        locations=len(set(rows.loc[is_one, "location"]) - {""}),
        recall=(recall[0], recall[1]),
        f1=(f1[0], f1[1]),
        recall_change=recall[1] - recall[0],
        recall_interval=ends[0],
        f1_change=f1[1] - f1[0],
        f1_interval=ends[1],
        average_precision_change=ap[1] - ap[0],
        average_precision_interval=ends[2],
    )


def _side(table: pd.DataFrame, common: tuple[str, ...], draws: Draws | None) -> _Side:
    """Recall, F1 and average precision [draws, classes]; without draws those of the table itself, as a single draw."""
    truth = numbers(table["class_id"], common)
    named = numbers(table["predicted"].where(table["predicted"].isin(common), OTHER), (*common, OTHER))
    drawn = draws or _Once(table)
    _, recall, f1 = rates(drawn.confusions(truth, named, len(common) + 1))
    aps = [drawn.average_precisions(table[probability_column(c)].to_numpy(np.float64), truth == i) for i, c in enumerate(common)]
    return _Side(recall, f1, np.stack(aps, axis=1) if aps else np.empty((len(recall), 0)))


class _Once(Draws):
    """Every place once: the figures themselves."""

    def __init__(self, rows: pd.DataFrame) -> None:
        super().__init__(rows)
        self.times = np.ones((1, self.locations))
