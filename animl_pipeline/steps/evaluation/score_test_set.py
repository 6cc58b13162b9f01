"""Check the test crops and score them with the packaged model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.html_page import format_count
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.table_schemas import TEST_PREDICTIONS
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.inference.score_crops import score_crops
from animl_pipeline.storage.store import Store

if TYPE_CHECKING:
    from animl_pipeline.config import Plan
    from animl_pipeline.core.artifacts import Artifact
    from animl_pipeline.inference.classifier import Classifier


def join_splits(crops: pd.DataFrame, splits: pd.DataFrame) -> pd.DataFrame:
    """The crops that are in a split, with their ``split``, ordered by crop_id.

    Raises:
        EvaluationError: a crop of the splits is missing, or a location is in the test split and in another.
    """
    joined = splits[["crop_id", "split"]].merge(crops, on="crop_id", how="left", validate="one_to_one", indicator=True)
    missing = int((joined["_merge"] == "left_only").sum())
    if missing:
        raise EvaluationError(
            f"the crops step lacks {missing} of the {len(joined)} crops in the splits; run the step 'splits' again",
            code="missing_crops", missing=missing,
        )  # fmt: skip
    test = joined["split"] == "test"
    shared = sorted((set(joined.loc[test, "location"]) & set(joined.loc[~test, "location"])) - {""})
    if shared:
        raise EvaluationError(
            f"{format_count(len(shared), 'location')} of test also in train or val, such as {shared[0]!r}; run the step 'splits' again",
            code="location_in_two_splits", locations=shared,
        )  # fmt: skip
    return joined.drop(columns="_merge").sort_values("crop_id", ignore_index=True)


def score_test_crops(split: pd.DataFrame, classifier: Classifier, store: Store, stored: ModelInput) -> pd.DataFrame:
    """The test crops, also of false boxes, with the model's probabilities; see :func:`animl_pipeline.inference.score_crops.score_crops`.

    Raises:
        EvaluationError: there are no test crops of animals, the model does not know the class of one, or a crop has the wrong size.
    """
    test = split[split["split"] == "test"].reset_index(drop=True)
    if not test["class_id"].isin(classifier.card.animal_ids()).any():
        raise EvaluationError("there are no test crops; raise splits.test in the plan or add sources with more locations", code="no_test_crops")
    unknown = sorted(set(test["class_id"]) - set(classifier.card.class_ids()))
    if unknown:
        raise EvaluationError(
            f"the model does not know the class {unknown[0]!r} of some test crops; run the steps 'labels' to 'training' again",
            code="unknown_class", classes=unknown,
        )  # fmt: skip
    return score_crops(test, classifier, store, stored, "test crops")


def select_columns(scored: pd.DataFrame, ids: tuple[str, ...]) -> pd.DataFrame:
    """The columns of predictions.parquet."""
    return scored[[*TEST_PREDICTIONS.names(), *map(probability_column, ids)]]


def load_classifier(model: Artifact, plan: Plan, store: Store) -> Classifier:
    """The model's classifier, which must have the plan's classes and model input.

    Raises:
        EvaluationError: it has others.
    """
    from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, Classifier

    store.path(model, CARD_FILE)
    classifier = Classifier.load(store.path(model, MODEL_FILE).parent)
    card = classifier.card
    if (card.class_ids(), card.nothing, card.other_animal) != (plan.labels.class_ids(), plan.labels.nothing_id, plan.labels.other_animal_id):
        raise EvaluationError(
            f"expected a model of the plan's classes {', '.join(plan.labels.class_ids())}, found one of {', '.join(card.class_ids())}; "
            "run the step 'training' again",
            code="other_classes",
        )
    if card.model_input != plan.model_input:
        raise EvaluationError(
            f"expected a model for the plan's model_input ({plan.model_input}), found one for {card.model_input}; run the step 'training' again",
            code="other_model_input",
        )
    return classifier
