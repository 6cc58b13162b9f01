"""The second test: later images of known cameras, which the model never learnt from, scored as those of the test locations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pandas as pd

from animl_pipeline.core.evaluation_results import LaterScores, Metrics
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.inference.score_crops import score_crops
from animl_pipeline.steps.evaluation import production_score
from animl_pipeline.steps.evaluation.metrics import compute_metrics
from animl_pipeline.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from animl_pipeline.inference.classifier import Classifier

T = TypeVar("T")
LATER_SPLIT = "test_later"
DAY = len("2026-07-01")


class LaterRow(NamedTuple):
    """One class in the report's table: at the test locations and on later images of known cameras. None where there is none of the class."""

    id: str
    crops: tuple[int, int]
    f1: tuple[float | None, float | None]
    sequences: tuple[float, float]
    recall: tuple[float | None, float | None]
    precision: tuple[float | None, float | None]


def score_later_images(
    split: pd.DataFrame,
    data: production_score.SequenceData | None,
    classifier: Classifier,
    equivalents: Mapping[str, Sequence[str]],
    detector_confidence: float,
    store: Store,
    stored: ModelInput,
) -> LaterScores | None:
    """The scores on later images of known cameras; None if there are none. No rule of the gate uses them.

    Args:
        split: all crops with their split.
        data: the sequences of these images; None if production is not scored.
        classifier: the packaged model.
        equivalents: class → other classes that count as right for it.
        detector_confidence: for the record.
        store: holds the crops and images.
        stored: the plan's model input.
    """
    card = classifier.card
    crops = split[(split["split"] == LATER_SPLIT) & split["class_id"].isin(card.animal_ids())].reset_index(drop=True)
    days = [*crops["taken"], *(data.images["taken"] if data is not None else [])]
    if not days:
        return None
    on_crops = (
        compute_metrics(score_crops(crops, classifier, store, stored, "later crops"), card.animal_ids(), card.unscored_ids()) if len(crops) else None
    )
    production = None
    if data is not None and len(data.images):
        production = production_score.score_classifier(data, classifier, equivalents, detector_confidence, store, stored, "boxes of later images")
    return LaterScores(
        first_day=min((day[:DAY] for day in days if day), default=""),
        examples=len(crops),
        locations=on_crops.locations if on_crops else 0,
        accuracy=on_crops.accuracy if on_crops else None,
        accuracy_interval=on_crops.accuracy_interval if on_crops else None,
        macro_f1=on_crops.macro_f1 if on_crops else None,
        macro_f1_interval=on_crops.macro_f1_interval if on_crops else None,
        classes=on_crops.classes if on_crops else (),
        production=production,
    )


def compare_with_new_locations(metrics: Metrics) -> list[LaterRow]:
    """A row for each class that any of the two tests has."""
    later = metrics.later
    if later is None:
        return []
    rows = []
    for c in metrics.classes:
        crops = [c, next((x for x in later.classes if x.id == c.id), None)]
        sequences = [next((x for x in p.classes if x.id == c.id), None) if p else None for p in (metrics.production, later.production)]
        row = LaterRow(
            c.id,
            crops=_pair(x.examples if x else 0 for x in crops),
            f1=_pair(x.f1 if x and x.examples else None for x in crops),
            sequences=_pair(x.sequences if x else 0.0 for x in sequences),
            recall=_pair(x.recall if x else None for x in sequences),
            precision=_pair(x.precision if x else None for x in sequences),
        )
        rows += [row] if any(row.crops) or any(row.sequences) else []
    return rows


def _pair(values: Iterable[T]) -> tuple[T, T]:
    first, second = values
    return first, second
