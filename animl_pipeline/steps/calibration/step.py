"""The step: the model and the val crops in, the same model with a calibrated card out."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.records import Artifact, Counts, ModelCard, Threshold
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS, VAL_PREDICTIONS
from animl_pipeline.core.tables import write_table
from animl_pipeline.inference.scoring import expected_calibration_error, probability_column, probability_matrix, rescale_temperature, score_crops
from animl_pipeline.steps.calibration.temperature import fitted_temperature
from animl_pipeline.steps.calibration.thresholds import chosen_thresholds
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

if TYPE_CHECKING:
    from animl_pipeline.config import Plan

log = logging.getLogger(__name__)

STEP = Step("calibration", version=1, sections=("thresholds",), reads=(CROPS, SPLITS), writes=(VAL_PREDICTIONS,), libraries=("onnxruntime",))


THRESHOLDS_FILE = "thresholds.json"
CATEGORY_CONFIG_FILE = "category_config.json"
VAL_COLUMNS = ["crop_id", "source", "image_id", "location", "class_id", "predicted", "probability"]


def calibrate_classifier(model: Artifact, crops: Artifact, splits: Artifact, plan: Plan, store: Store) -> Artifact:
    """The model again (model.onnx), with a card.json that holds its temperature and thresholds, both found on val.

    Beside them: thresholds.json (``records.Threshold`` a class), category_config.json (Animl's categoryConfig:
    ``{<class name>: {confThreshold, disabled}}``) and val.parquet (the calibrated answers to the val crops). Like the step
    model's, this artifact is what evaluation and package read.

    Args:
        model: the model step, with model.onnx and card.json.
        crops: the crops step.
        splits: the splits step; only its val side is looked at.
        plan: gives thresholds and view.
        store: where the steps are.

    Raises:
        EvaluationError: there is no val crop, or one of a class that the model does not know; an answer is no number.
    """

    def build(space: Workspace) -> StepOutput:
        from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, Classifier

        store.path(model, CARD_FILE)
        network = store.path(model, MODEL_FILE)
        classifier = Classifier.load(network.parent)
        val = _val_crops(store.table(crops, "crops.parquet"), store.table(splits, "splits.parquet"), classifier.card.class_ids())
        scored = score_crops(val, classifier, store, plan.model_input, "val crops")
        shutil.copyfile(network, space.out / MODEL_FILE)
        card, thresholds = _calibrated(classifier.card, scored, plan)
        (space.out / CARD_FILE).write_text(card.model_dump_json(indent=1), encoding="utf-8")
        return _written(space, card, thresholds, scored)

    config = {"thresholds": plan.thresholds.model_dump(mode="json"), "model_input": plan.model_input.model_dump(mode="json")}
    inputs = {"model": model, "crops": crops, "splits": splits}
    return store.make(STEP, inputs=inputs, config=config, build=build)


def _val_crops(crops: pd.DataFrame, splits: pd.DataFrame, ids: tuple[str, ...]) -> pd.DataFrame:
    val = crops[crops["crop_id"].isin(splits.loc[splits["split"] == "val", "crop_id"])].sort_values("crop_id", ignore_index=True)
    if val.empty:
        raise EvaluationError(
            "expected crops in the val split to calibrate on, found none; raise splits.val in the plan or add labels of more places"
        )
    strange = sorted(set(val["class_id"]) - set(ids))
    if strange:
        raise EvaluationError(
            f"expected val crops of the model's classes, found the class {strange[0]!r}; run the steps 'labels' to 'training' again"
        )
    return val


def _calibrated(card: ModelCard, scored: pd.DataFrame, plan: Plan) -> tuple[ModelCard, tuple[Threshold, ...]]:
    """The card with temperature and thresholds; ``scored`` has the calibrated probabilities then."""
    ids = card.class_ids()
    plain = probability_matrix(scored, ids)
    targets = np.asarray(scored["class_id"].map({c: i for i, c in enumerate(ids)}), np.int64)
    by = fitted_temperature(plain, targets)
    sure = rescale_temperature(plain, by)
    scored[[probability_column(c) for c in ids]] = sure
    scored["probability"] = sure.max(axis=1)
    thresholds = chosen_thresholds(scored, ids, plan.thresholds)
    right = (scored["class_id"] == scored["predicted"]).to_numpy()
    errors = [expected_calibration_error(p.max(axis=1), right) for p in (plain, sure)]
    log.info("calibration on %d val crops: temperature %.3f, calibration error %.3f before, %.3f after", len(scored), by, *errors)
    chosen = {"temperature": card.temperature * by, "thresholds": {t.id: t.value for t in thresholds}}
    recorded = card.plan | {"thresholds": plan.thresholds.model_dump(mode="json")}
    return card.model_copy(update=chosen | {"plan": recorded}), thresholds


def _written(space: Workspace, card: ModelCard, thresholds: tuple[Threshold, ...], scored: pd.DataFrame) -> StepOutput:
    names = {c.id: c.name for c in card.classes}
    config = {names[t.id]: {"confThreshold": t.value, "disabled": False} for t in thresholds}
    (space.out / CATEGORY_CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")
    (space.out / THRESHOLDS_FILE).write_text(json.dumps([t.model_dump(mode="json") for t in thresholds], indent=1), encoding="utf-8")
    write_table(space.out, VAL_PREDICTIONS, scored[[*VAL_COLUMNS, *(probability_column(c) for c in card.class_ids())]])
    for t in thresholds:
        log.info("%s from %.3f on (%s): %s", t.id, t.value, t.aim, "reached on val" if t.met else "NOT reached on val")
    missed = sum(not t.met for t in thresholds)
    return StepOutput(Counts(kept=len(scored), noted={"aims_not_reached_on_val": missed} if missed else {}, unit="val crops"))
