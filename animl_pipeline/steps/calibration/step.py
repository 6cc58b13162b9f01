"""The calibration step: the model and the val crops in; the same model with temperature and thresholds in its card out."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import ThresholdsConfig
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.evaluation_results import Threshold
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, OUT_OF_FOLD, SPLITS, VAL_PREDICTIONS
from animl_pipeline.core.tables import write_table
from animl_pipeline.inference.calibration_and_threshold_metrics import (
    expected_calibration_error,
    probability_column,
    probability_matrix,
    rescale_temperature,
)
from animl_pipeline.inference.score_crops import score_crops
from animl_pipeline.steps.calibration.reference_animals import write_reference
from animl_pipeline.steps.calibration.thresholds import choose_thresholds
from animl_pipeline.storage.store import StepOutput, Store, Workspace

log = logging.getLogger(__name__)

STEP = Step(
    "calibration",
    version=2,
    sections=("thresholds", "labels"),
    reads=(CROPS, SPLITS, OUT_OF_FOLD),
    writes=(VAL_PREDICTIONS,),
    libraries=("onnxruntime",),
)
THRESHOLDS_FILE = "thresholds.json"
CATEGORY_CONFIG_FILE = "category_config.json"
TEMPERATURES = (0.1, 20.0)
"""The range of the search. A model that needs a temperature outside of it is broken rather than badly calibrated."""


def calibrate_classifier(
    model: Artifact,
    crops: Artifact,
    splits: Artifact,
    config: ThresholdsConfig,
    store: Store,
    parents: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    *,
    register_other_animal: bool = False,
) -> Artifact:
    """Choose temperature and thresholds on val, or on out-of-fold answers if the model learnt from val, too; write them into the model's card.

    The artifact has model.onnx (unchanged), card.json, thresholds.json (a ``Threshold`` for each class), category_config.json
    (Animl's categoryConfig: ``{<class name>: {confThreshold, disabled}}``) and val.parquet (the calibrated predictions on which they were
    chosen), and embedding_reference.safetensors if the model gives embeddings.
    A class for false boxes has no threshold and is disabled. Its crops count: what is called an animal there is a false alarm.

    Args:
        model: the artifact of the step training.
        crops: the artifact of the step crops.
        splits: the artifact of the step splits; only its val split is used, and that only if the model did not learn from it.
        config: the plan's section thresholds.
        store: holds the artifacts.
        parents: the plan's ``labels.parents``; they get thresholds, too, and are written into the card.
        register_other_animal: whether the class for other animals gets a threshold, so that it is answered.

    Raises:
        EvaluationError: ``no_val_crop``, ``unknown_class``, or a probability is not finite.
    """

    def build(space: Workspace) -> StepOutput:
        from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, Classifier

        store.path(model, CARD_FILE)
        onnx_file = store.path(model, MODEL_FILE)
        classifier = Classifier.load(onnx_file.parent)
        if classifier.card.out_of_fold:
            scored = _read_out_of_fold(model, crops, store, classifier.card.class_ids())
        else:
            val = _read_val_crops(crops, splits, store, classifier.card.class_ids())
            scored = score_crops(val, classifier, store, classifier.card.model_input, "val crops")
        shutil.copyfile(onnx_file, space.out / MODEL_FILE)
        card, thresholds = _calibrate(classifier.card, scored, config, parents, register_other_animal=register_other_animal)
        card = card.model_copy(update={"embedding_reference": write_reference(space.out, classifier, scored, crops, splits, store)})
        categories = _category_config(card, thresholds)
        (space.out / CARD_FILE).write_text(card.model_dump_json(indent=1), encoding="utf-8")
        (space.out / CATEGORY_CONFIG_FILE).write_text(json.dumps(categories, indent=1), encoding="utf-8")
        (space.out / THRESHOLDS_FILE).write_text(json.dumps([t.model_dump(mode="json") for t in thresholds], indent=1), encoding="utf-8")
        columns = [*VAL_PREDICTIONS.names(), *(probability_column(c) for c in card.class_ids())]
        write_table(space.out, VAL_PREDICTIONS, scored[columns])
        return StepOutput(_counts(len(scored), card, thresholds))

    inputs = {"model": model, "crops": crops, "splits": splits}
    key: dict[str, Any] = {"thresholds": config.model_dump(mode="json")} | ({"parents": dict(parents)} if parents else {})
    key |= {"register_other_animal": True} if register_other_animal else {}
    return store.make(STEP, inputs=inputs, config=key, build=build)


def _category_config(card: ModelCard, thresholds: Sequence[Threshold]) -> dict[str, dict[str, float | bool]]:
    """Animl's categoryConfig. Classes that are not answered are disabled."""
    names = {c.id: c.name for c in card.registered_classes()}
    answered: dict[str, dict[str, float | bool]] = {names[t.id]: {"confThreshold": t.value, "disabled": False} for t in thresholds}
    return answered | {names[c]: {"confThreshold": 1.0, "disabled": True} for c in card.hidden_ids()}


def _counts(crops: int, card: ModelCard, thresholds: Sequence[Threshold]) -> Counts:
    """How many crops chose the thresholds, and how many aims were not reached, or reached but not shown."""
    missed = sum(not t.met_on_val for t in thresholds)
    not_shown = sum(t.met_on_val and not t.aim_met for t in thresholds)
    notes = {"aims_not_reached_on_val": missed, "aims_reached_but_not_shown": not_shown}
    unit = "out-of-fold crops" if card.out_of_fold else "val crops"
    return Counts(kept=crops, notes={k: n for k, n in notes.items() if n}, unit=unit)


def fit_temperature(probabilities: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """The temperature that makes the val labels most likely (temperature scaling, Guo et al. 2017, arXiv 1706.04599).

    The prior of log temperature is normal with mean 0 and standard deviation 1. With many crops it has no weight. With a few crops
    and no mistake it keeps the model from becoming infinitely certain.

    Args:
        probabilities: float64 [n, classes] at temperature 1.
        targets: class numbers int64 [n].
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        scaled = rescale_temperature(probabilities, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(scaled[rows, targets], 1e-300)).sum() + log_temperature**2 / 2)

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-5})
    return round(float(np.exp(best.x)), 4)


def _read_val_crops(crops: Artifact, splits: Artifact, store: Store, classes: Sequence[str]) -> pd.DataFrame:
    split = store.table(splits, SPLITS)
    table = store.table(crops, CROPS)
    val = table[table["crop_id"].isin(split.loc[split["split"] == "val", "crop_id"])].sort_values("crop_id", ignore_index=True)
    if val.empty:
        message = "no crop in the val split to calibrate on; raise splits.val in the plan, or add labels from more locations"
        raise EvaluationError(message, code="no_val_crop")
    unknown = sorted(set(val["class_id"]) - set(classes))
    if unknown:
        message = f"val has crops of {', '.join(unknown)}, which the model does not know; run the steps labels to training again"
        raise EvaluationError(message, code="unknown_class")
    return val


def _read_out_of_fold(model: Artifact, crops: Artifact, store: Store, classes: tuple[str, ...]) -> pd.DataFrame:
    """The crops of train and val with the answers of models that did not learn from their locations, in the columns of ``score_crops``."""
    answers = store.table(model, OUT_OF_FOLD).drop(columns="fold")
    scored = store.table(crops, CROPS).merge(answers, on="crop_id", validate="one_to_one").sort_values("crop_id", ignore_index=True)
    probabilities = probability_matrix(scored, classes)
    scored["predicted"] = np.asarray(classes, object)[probabilities.argmax(axis=1)]
    scored["probability"] = probabilities.max(axis=1)
    return scored


def _calibrate(
    card: ModelCard, scored: pd.DataFrame, config: ThresholdsConfig, parents: Mapping[str, tuple[str, ...]], *, register_other_animal: bool
) -> tuple[ModelCard, tuple[Threshold, ...]]:
    """The card with temperature and thresholds. ``scored`` gets the calibrated probabilities."""
    classes = card.class_ids()
    before = probability_matrix(scored, classes)
    targets = np.asarray(scored["class_id"].map({c: i for i, c in enumerate(classes)}), np.int64)
    temperature = fit_temperature(before, targets)
    after = rescale_temperature(before, temperature)
    scored[[probability_column(c) for c in classes]] = after
    scored["probability"] = after.max(axis=1)
    answered = (*card.animal_ids(), *([card.other_animal] if card.other_animal and register_other_animal else []))
    thresholds = choose_thresholds(scored, answered, config, parents)
    right = (scored["class_id"] == scored["predicted"]).to_numpy()
    errors = [expected_calibration_error(p.max(axis=1), right) for p in (before, after)]
    log.info("%d crops not learnt from: temperature %.3f, expected calibration error %.3f before, %.3f after", len(scored), temperature, *errors)
    for t in thresholds:
        log.info("%s: threshold %.3f; aim %s: %s", t.id, t.value, t.aim, t.describe_aim())
    update = {
        "temperature": card.temperature * temperature,
        "thresholds": {t.id: t.value for t in thresholds},
        "parents": dict(parents),
        "plan": card.plan | {"thresholds": config.model_dump(mode="json")},
    }
    return card.model_copy(update=update), thresholds
