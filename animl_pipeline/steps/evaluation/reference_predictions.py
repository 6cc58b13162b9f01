"""The test crops whose answers a release checks: whole picture and box in, the offline model's probabilities out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.core.records import Box
from animl_pipeline.inference.scoring import probability_column
from animl_pipeline.storage.step_cache import Store

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

MAX_IMAGE_BYTES = 2_800_000
"""Larger pictures do not travel to an endpoint as they are: Animl shrinks them first."""

TOLERANCE = 1e-5
"""Largest difference of a probability between the stored crop and the same box cut from its picture."""


def reference_answers(scored: pd.DataFrame, classifier: Classifier, store: Store, wanted: int) -> list[dict[str, Any]]:
    """Up to ``wanted`` records ``{"picture": blob, "box": [ymin, xmin, ymax, xmax], "probabilities": {class id: p}}``.

    The crops take turns by class; within a class, pictures small enough to be sent as they are come first, then the
    crop's id decides, which is as good as chance and the same every time. Pictures that show people come after all others.

    Raises:
        EvaluationError: what the model says of a box of the picture is not what it said of the stored crop.
    """
    return [_answer(row, classifier, store) for row in _by_turns(scored, classifier.card.class_ids(), wanted)]


def _by_turns(scored: pd.DataFrame, ids: tuple[str, ...], wanted: int) -> Iterator[pd.Series[Any]]:
    people = scored.get("with_people", False)
    order = scored.assign(people=people, large=scored["image_bytes"] > MAX_IMAGE_BYTES).sort_values(["people", "large", "crop_id"])
    turn = order.groupby("class_id").cumcount()
    seat = order["class_id"].map({c: i for i, c in enumerate(ids)})
    chosen = order.assign(turn=turn, seat=seat).sort_values(["people", "large", "turn", "seat"]).head(wanted)
    for _, row in chosen.iterrows():
        yield row


def _answer(row: pd.Series[Any], classifier: Classifier, store: Store) -> dict[str, Any]:
    box = Box.of([float(row[side]) for side in ("ymin", "xmin", "ymax", "xmax")])
    probabilities = classifier.classify(open_image(store.blob(row["image"])), box)
    apart = max(abs(p - float(row[probability_column(c)])) for c, p in probabilities.items())
    if apart > TOLERANCE:
        raise EvaluationError(
            f"expected the same answer for crop {row['crop_id'][:12]} and for its box of the whole picture, found probabilities {apart:.2g} apart; "
            "the stored crops show another view than the endpoint's: run the steps 'crops' to 'training' again"
        )
    return {"image": row["image"], "box": box.as_list(), "probabilities": probabilities}
