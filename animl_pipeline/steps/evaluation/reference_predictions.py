"""Choose reference predictions: boxes of whole images with the offline model's probabilities. The live check of a release compares with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from animl_pipeline.core.animl_and_sagemaker_limits import MAX_IMAGE_BYTES
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.storage.store import Store

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

TOLERANCE = 1e-5
"""Largest difference of a probability between the stored crop and the same box of its image."""


def choose_reference_predictions(scored: pd.DataFrame, classifier: Classifier, store: Store, wanted: int) -> list[dict[str, Any]]:
    """Up to ``wanted`` records ``{"image": blob, "box": [ymin, xmin, ymax, xmax], "probabilities": {class id: p}}``.

    Classes take turns. Images without people come first, then images that are small enough to be sent unchanged, then the order is by
    crop_id, which is a hash and so as good as random.

    Raises:
        EvaluationError: the probabilities for the box of the image differ from those for the stored crop.
    """
    rows = scored.assign(people=scored.get("with_people", False), large=scored["image_bytes"] > MAX_IMAGE_BYTES)
    rows = rows.sort_values(["people", "large", "crop_id"])
    rows = rows.assign(
        turn=rows.groupby("class_id").cumcount(), order=rows["class_id"].map({c: i for i, c in enumerate(classifier.card.class_ids())})
    )
    chosen = rows.sort_values(["people", "large", "turn", "order"]).head(wanted)
    return [_predict_box(row, classifier, store) for _, row in chosen.iterrows()]


def _predict_box(row: pd.Series[Any], classifier: Classifier, store: Store) -> dict[str, Any]:
    box = Box.of([float(row[side]) for side in ("ymin", "xmin", "ymax", "xmax")])
    probabilities = classifier.classify(open_image(store.blob(row["image"])), box)
    difference = max(abs(p - float(row[probability_column(c)])) for c, p in probabilities.items() if c not in classifier.card.parents)
    if difference > TOLERANCE:
        raise EvaluationError(
            f"the model's probabilities for crop {row['crop_id'][:12]} differ by {difference:.2g} from those for its box in the whole image; "
            "the stored crops are not what the endpoint sees: run the steps 'crops' to 'training' again",
            code="crop_differs_from_image",
        )
    return {"image": row["image"], "box": box.as_list(), "probabilities": probabilities}
