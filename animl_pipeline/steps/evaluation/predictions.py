"""The test crops, seen to be fit for a judgement, with the packaged model's probability of every class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.records import ModelInput
from animl_pipeline.inference.scoring import probability_column, score_crops
from animl_pipeline.storage.step_cache import Store

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier


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
    shared = sorted((set(joined.loc[test, "location"]) & set(joined.loc[~test, "location"])) - {""})
    if shared:
        raise EvaluationError(
            f"expected test places that the model never saw, found {len(shared)} also in train or val, such as {shared[0]!r}; "
            "run the step 'splits' again"
        )
    return joined.drop(columns="_merge").sort_values("crop_id", ignore_index=True)


def score_test_crops(split: pd.DataFrame, classifier: Classifier, store: Store, stored: ModelInput) -> pd.DataFrame:
    """The test crops, scored; see :func:`animl_pipeline.inference.scoring.score_crops`.

    Raises:
        EvaluationError: there are no test crops, one has a class that the model does not know or another size than the
            model's view, or an answer is no probability.
    """
    test = split[split["split"] == "test"].reset_index(drop=True)
    _check_labels(test, classifier.card.class_ids())
    return score_crops(test, classifier, store, stored, "test crops")


def public_columns(scored: pd.DataFrame, ids: tuple[str, ...]) -> pd.DataFrame:
    """The columns of predictions.parquet."""
    names = ["crop_id", "source", "image_id", "location", "class_id", "predicted", "probability", "infrared", *map(probability_column, ids)]
    return scored[names]


def _check_labels(test: pd.DataFrame, ids: tuple[str, ...]) -> None:
    if test.empty:
        raise EvaluationError("expected crops in the test split, found none; raise splits.test in the plan or add sources with more places")
    strange = sorted(set(test["class_id"]) - set(ids))
    if strange:
        raise EvaluationError(
            f"expected test crops of the model's classes, found the class {strange[0]!r}; run the steps 'labels' to 'training' again"
        )
