"""Test crops → one row a crop, with the packaged model's probability of every class."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.errors import EvaluationError
from animl_pipeline.pixels import normalise_array, open_picture
from animl_pipeline.progress import track
from animl_pipeline.store import Store, batches

if TYPE_CHECKING:
    from animl_pipeline.classifier import Classifier

BATCH = 8
"""Crops of one forward pass. Fixed, since sums of another batch size may differ in their last bit; small, since several are under way."""

MOST_THREADS = 8
"""Forward passes at a time, each on one core; with EfficientNet-B3 at 300 pixels one takes some 200 MB."""


def probability_column(class_id: str) -> str:
    """The column that holds a class's probability."""
    return f"p_{class_id}"


def join_splits(crops: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """The crops that are used, each with its ``split``, ordered by crop_id.

    Raises:
        EvaluationError: the splits name crops that are not there, or a place is in the test split and in another.
    """
    joined = splits[["crop_id", "split"]].merge(crops, on="crop_id", how="left", validate="one_to_one", indicator=True)
    lost = int((joined["_merge"] == "left_only").sum())
    if lost:
        raise EvaluationError(
            f"expected every crop that the splits name among the crops, {lost} of {len(joined)} are not; run the step 'splits' again"
        )
    test = joined["split"] == "test"
    shared = sorted((set(joined.loc[test, "place"]) & set(joined.loc[~test, "place"])) - {""})
    if shared:
        raise EvaluationError(
            f"expected test places that the model never saw, found {len(shared)} also in train or val, such as {shared[0]!r}; "
            "run the step 'splits' again"
        )
    return joined.drop(columns="_merge").sort_values("crop_id", ignore_index=True)


def score_test_crops(split: pd.DataFrame, classifier: Classifier, store: Store) -> pd.DataFrame:
    """The test crops with ``predicted``, ``probability`` (of the predicted class) and ``p_<class id>`` columns, float32.

    Raises:
        EvaluationError: there are no test crops, one has a class that the model does not know or another size than the
            model's view, or an answer is no probability.
    """
    test = split[split["split"] == "test"].reset_index(drop=True)
    ids = classifier.card.class_ids()
    _check_labels(test, ids)
    probabilities = _probabilities(test["blob"].tolist(), classifier, store)
    broken = int((~np.isfinite(probabilities).all(axis=1)).sum())
    if broken:
        raise EvaluationError(
            f"the model's answers to {broken} of {len(test)} test crops are no numbers; training went astray, lower train.lr in the plan"
        )
    columns = pd.DataFrame(probabilities, columns=[probability_column(c) for c in ids])
    columns.insert(0, "predicted", np.asarray(ids, dtype=object)[probabilities.argmax(axis=1)])
    columns.insert(1, "probability", probabilities.max(axis=1))
    return pd.concat([test, columns], axis=1)


def public_columns(scored: pd.DataFrame, ids: tuple[str, ...]) -> pd.DataFrame:
    """The columns of predictions.parquet."""
    names = ["crop_id", "source", "image_id", "place", "label", "predicted", "probability", *map(probability_column, ids)]
    return scored[names]


def _check_labels(test: pd.DataFrame, ids: tuple[str, ...]) -> None:
    if test.empty:
        raise EvaluationError("expected crops in the test split, found none; raise splits.test in the plan or add sources with more places")
    strange = sorted(set(test["label"]) - set(ids))
    if strange:
        raise EvaluationError(f"expected test crops of the model's classes, found the class {strange[0]!r}; run the steps 'labels' to 'model' again")


def _probabilities(blobs: list[str], classifier: Classifier, store: Store) -> NDArray[np.float32]:
    """Probabilities [n, classes] of stored crops, several batches at a time and each as it would be alone."""

    def score(batch: list[str]) -> NDArray[np.float32]:
        pixels = np.stack([_pixels(blob, classifier.card.view.size, store) for blob in batch])
        rows = classifier.probabilities(normalise_array(pixels, classifier.card.view))
        step(len(batch))
        return rows

    with track("test crops", len(blobs)) as step, ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        return np.concatenate(list(pool.map(score, batches(blobs, BATCH))))


def _pixels(blob: str, size: int, store: Store) -> NDArray[np.uint8]:
    crop = open_picture(store.blob(blob))
    if crop.size != (size, size):
        raise EvaluationError(
            f"expected crops of {size} x {size} pixels, found {crop.width} x {crop.height}; run the step 'crops' again with this plan's view"
        )
    return np.asarray(crop, dtype=np.uint8)
