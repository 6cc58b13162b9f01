"""What a packaged model says of crops, one row a crop; and what follows from it at a threshold.

Calibration asks for val, the evaluation for test, the champion and the label audit: all through here, each crop as it would be
alone, whatever else is asked.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.imaging import extract_crop, normalise_array, open_image
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Box, ModelInput, OperatingPoint
from animl_pipeline.storage.step_cache import Store, batches

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier

BATCH = 8
"""Crops of one forward pass. Fixed, since sums of another batch size may differ in their last bit; small, since several are under way."""

MOST_THREADS = 8
"""Forward passes at a time, each on one core; with EfficientNet-B3 at 300 pixels one takes some 200 MB."""

GREY = 4.0
"""An infrared picture has no colours: the mean spread of its channels is below. Of 417 real pictures 129 were below 1, none between 1 and 7."""

BINS = 15
"""Of the expected calibration error, as Guo et al. 2017 (arXiv 1706.04599) use them."""


class _Row(NamedTuple):
    """What is needed of a crop to see it."""

    blob: str
    image: str
    corners: tuple[float, float, float, float]


def probability_column(class_id: str) -> str:
    """The column that holds a class's probability."""
    return f"p_{class_id}"


def score_crops(crops: pd.DataFrame, classifier: Classifier, store: Store, stored: ModelInput, what: str = "crops") -> pd.DataFrame:
    """The crops with ``predicted``, ``probability`` (of the predicted class), ``infrared`` and ``p_<class id>`` columns, float32.

    Args:
        crops: rows of crops.parquet.
        classifier: who is asked; a model with another size or margin than ``stored`` sees its own view, cut anew from the pictures.
        store: holds crops and pictures.
        stored: the view that the stored crops show.
        what: named in the progress.

    Raises:
        EvaluationError: a stored crop is not of the size that it should be, or an answer is no number.
    """
    crops = crops.reset_index(drop=True)
    ids, model_input = classifier.card.class_ids(), classifier.card.model_input
    own = (model_input.size, model_input.margin) != (stored.size, stored.margin)
    corners = zip(*(crops[side].tolist() for side in ("ymin", "xmin", "ymax", "xmax")), strict=True)
    rows = [_Row(*row) for row in zip(crops["blob"], crops["image"], corners, strict=True)]

    def score(batch: list[_Row]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        pixels = np.stack([_cut_anew(row, model_input, store) if own else _as_stored(row, model_input.size, store) for row in batch])
        answers = classifier.probabilities(normalise_array(pixels, model_input))
        step(len(batch))
        return answers, _spread(pixels)

    with track(what, len(rows)) as step, ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        answers = list(pool.map(score, batches(rows, BATCH)))
    probabilities = np.concatenate([a for a, _ in answers]) if answers else np.empty((0, len(ids)), np.float32)
    broken = int((~np.isfinite(probabilities).all(axis=1)).sum())
    if broken:
        raise EvaluationError(
            f"the model's answers to {broken} of {len(crops)} {what} are no numbers; training went astray, lower train.lr in the plan"
        )
    columns = pd.DataFrame(probabilities, columns=[probability_column(c) for c in ids])
    columns.insert(0, "predicted", np.asarray(ids, dtype=object)[probabilities.argmax(axis=1)] if rows else [])
    columns.insert(1, "probability", probabilities.max(axis=1) if rows else [])
    columns.insert(2, "infrared", np.concatenate([s for _, s in answers]) < GREY if answers else [])
    return pd.concat([crops, columns], axis=1)


def probability_matrix(scored: pd.DataFrame, ids: tuple[str, ...]) -> NDArray[np.float64]:
    """The probabilities [n, classes] of scored crops, float64."""
    return scored[[probability_column(c) for c in ids]].to_numpy(np.float64)


def rescale_temperature(probabilities: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """Probabilities as they would be at ``by`` times the temperature: softmax(log p / by), since log p is the logits but for a constant."""
    logs = np.log(np.maximum(probabilities, 1e-37)) / by
    raised = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def reliability_bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Per bin of confidence with anything in it: [bins, 3] of mean confidence, share that is right, and number of crops."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    number = np.bincount(bins, minlength=BINS).astype(float)
    held = number > 0
    means = [np.bincount(bins, v, BINS)[held] / number[held] for v in (confidence, right.astype(float))]
    return np.stack([*means, number[held]], axis=1)


def expected_calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """The expected calibration error: the mean, over crops, of their bin's |confidence - share right|."""
    table = reliability_bins(confidence, right)
    return float((np.abs(table[:, 0] - table[:, 1]) * table[:, 2]).sum() / max(1, len(confidence)))


def operating_point(scored: pd.DataFrame, class_id: str, threshold: float) -> OperatingPoint:
    """What naming a class from a probability on would give and cost on these crops."""
    named = scored[probability_column(class_id)].to_numpy(np.float64) >= threshold
    is_one = (scored["class_id"] == class_id).to_numpy()
    hits, alarms = int((named & is_one).sum()), int((named & ~is_one).sum())
    return OperatingPoint(
        examples=int(is_one.sum()),
        locations=len(set(scored.loc[is_one, "location"]) - {""}),
        recall=hits / int(is_one.sum()) if is_one.any() else None,
        precision=hits / (hits + alarms) if hits + alarms else None,
        false_alarms_per_1000=1000 * alarms / max(1, len(scored)),
    )


def _as_stored(row: _Row, size: int, store: Store) -> NDArray[np.uint8]:
    crop = open_image(store.blob(row.blob))
    if crop.size != (size, size):
        raise EvaluationError(
            f"expected crops of {size} x {size} pixels, found {crop.width} x {crop.height}; run the step 'crops' again with this plan's view"
        )
    return np.asarray(crop, dtype=np.uint8)


def _cut_anew(row: _Row, model_input: ModelInput, store: Store) -> NDArray[np.uint8]:
    return np.asarray(extract_crop(open_image(store.blob(row.image)), Box.of(row.corners), model_input), dtype=np.uint8)


def _spread(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The mean difference of the largest and the smallest channel of each view."""
    return np.asarray((pixels.max(axis=3) - pixels.min(axis=3)).mean(axis=(1, 2)), np.float32)
