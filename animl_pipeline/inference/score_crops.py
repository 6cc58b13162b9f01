"""Score crops with the packaged classifier: the probability of every class for each crop.

Calibration (on val), evaluation (on test), the comparison with the champion and the label audit all score crops here. The batch size is
fixed, so a crop gets the same probabilities whatever other crops are scored.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.artifacts import BlobReader
from animl_pipeline.core.box_type import Box, BoxTuple
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.model_input import extract_crop, normalise_array
from animl_pipeline.core.progress import track
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.storage.store import batches

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

BATCH = 8
"""Crops in one forward pass. Fixed, because sums in another batch size may differ in their last bit. Small, because several batches run
at the same time."""
MAX_THREADS = 8
"""Forward passes at the same time, one per core. With EfficientNet-B3 at 300 pixels one takes about 200 MB."""
INFRARED_SPREAD = 4.0
"""An infrared image has no colour: the mean difference between its channels is below this, in grey levels. Of 417 real images 129 were
below 1, and none was between 1 and 7."""


class ScoredCrops(NamedTuple):
    """Crops with the columns of :func:`score_crops`, and the features before the model's last layer: float32 [n, width]."""

    rows: pd.DataFrame
    embeddings: NDArray[np.float32]


class _Row(NamedTuple):
    """The values that are needed to load one crop."""

    blob: str
    image: str
    box: BoxTuple


def score_crops(crops: pd.DataFrame, classifier: Classifier, store: BlobReader, stored: ModelInput, progress_name: str = "crops") -> pd.DataFrame:
    """The crops with the columns ``predicted``, ``probability`` (of the predicted class), ``infrared`` and ``p_<class id>``, float32.

    ``crops``: rows of crops.parquet. Where ``blob`` is empty, the crop is extracted from the image now and not stored. ``classifier``: the
    model. If its input has another size or margin than ``stored``, its crops are extracted from the images again. ``stored``: the model input
    that the stored crops were made for.

    Raises:
        EvaluationError: a stored crop has the wrong size, or a probability is not a finite number.
    """
    return _score(crops, classifier, store, stored, progress_name, embed=False).rows


def score_and_embed_crops(
    crops: pd.DataFrame, classifier: Classifier, store: BlobReader, stored: ModelInput, progress_name: str = "crops"
) -> ScoredCrops:
    """As :func:`score_crops`, with the embeddings of the crops. They have no columns where the package gives none."""
    return _score(crops, classifier, store, stored, progress_name, embed=classifier.has_embeddings())


def _score(
    crops: pd.DataFrame, classifier: Classifier, store: BlobReader, stored: ModelInput, progress_name: str, *, embed: bool
) -> ScoredCrops:  # fmt: skip
    crops = crops.reset_index(drop=True)
    ids, model_input = classifier.card.class_ids(), classifier.card.model_input
    extract_again = (model_input.size, model_input.margin) != (stored.size, stored.margin)
    boxes = zip(*(crops[side].tolist() for side in ("ymin", "xmin", "ymax", "xmax")), strict=True)
    rows = [_Row(*row) for row in zip(crops["blob"], crops["image"], boxes, strict=True)]

    def score(batch: list[_Row]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        pixels = np.stack(
            [_load_crop(row, model_input.size, store) if row.blob and not extract_again else _extract(row, model_input, store) for row in batch]
        )
        inputs = normalise_array(pixels, model_input)
        if embed:
            probabilities, embeddings = classifier.probabilities_and_embeddings(inputs)
        else:
            probabilities, embeddings = classifier.probabilities(inputs), np.empty((len(batch), 0), np.float32)
        advance(len(batch))
        return probabilities, _channel_spread(pixels), embeddings

    with track(progress_name, len(rows)) as advance, ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        scored = list(pool.map(score, batches(rows, BATCH)))
    probabilities = np.concatenate([p for p, _, _ in scored]) if scored else np.empty((0, len(ids)), np.float32)
    invalid = int((~np.isfinite(probabilities).all(axis=1)).sum())
    if invalid:
        raise EvaluationError(
            f"expected finite probabilities, found other values for {invalid} of {len(crops)} {progress_name}; the training diverged: "
            "lower train.lr in the plan",
            code="not_finite",
        )
    columns = pd.DataFrame(probabilities, columns=[probability_column(c) for c in ids])
    columns.insert(0, "predicted", np.asarray(ids, dtype=object)[probabilities.argmax(axis=1)] if rows else [])
    columns.insert(1, "probability", probabilities.max(axis=1) if rows else [])
    columns.insert(2, "infrared", np.concatenate([s for _, s, _ in scored]) < INFRARED_SPREAD if scored else [])
    embeddings = np.concatenate([e for _, _, e in scored]) if scored else np.empty((0, 0), np.float32)
    return ScoredCrops(pd.concat([crops, columns], axis=1), embeddings)


def _load_crop(row: _Row, size: int, store: BlobReader) -> NDArray[np.uint8]:
    crop = open_image(store.blob(row.blob))
    if crop.size != (size, size):
        raise EvaluationError(
            f"expected crops of {size} x {size} pixels, found {crop.width} x {crop.height}; run the step 'crops' again with this plan's model_input",
            code="wrong_crop_size",
        )
    return np.asarray(crop, dtype=np.uint8)


def _extract(row: _Row, model_input: ModelInput, store: BlobReader) -> NDArray[np.uint8]:
    return np.asarray(extract_crop(open_image(store.blob(row.image)), Box.of(row.box), model_input), dtype=np.uint8)


def _channel_spread(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The mean difference between the largest and the smallest channel of each crop [n, size, size, 3]."""
    return np.asarray((pixels.max(axis=3) - pixels.min(axis=3)).mean(axis=(1, 2)), np.float32)
