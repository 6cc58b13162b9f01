"""The training step: crops and their split in; the ONNX model, its card and the training history out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.training import FOLDS_AND_HEADS, RUN_SETTINGS, TrainingConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import TrainingError, redact_url
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, CROSS_VALIDATION, OUT_OF_FOLD, SPLITS, TRAINED_IMAGES, TRAINING_HISTORY
from animl_pipeline.steps.training.choose_initial_weights import InitialWeights, choose_initial_weights
from animl_pipeline.storage.store import StepOutput, Store, Workspace

log = logging.getLogger(__name__)

STEP = Step(
    "training",
    version=3,
    sections=("train", "model_input", "labels", "splits", "package"),  # classes, train_only and tolerance only
    reads=(CROPS, SPLITS),
    writes=(TRAINING_HISTORY, TRAINED_IMAGES, CROSS_VALIDATION, OUT_OF_FOLD),
    libraries=("pillow", "torch", "torchvision", "timm", "lightning", "onnx"),
)
CHECKPOINT_FILE = "checkpoint.ckpt"
"""The last checkpoint of a training that has not finished, in the step's scratch folder."""


class TrainingInputs(NamedTuple):
    """What a training reads."""

    crops: Artifact
    splits: Artifact
    plan: Plan
    embeddings: Artifact | None = None

    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts by name."""
        found = {"crops": self.crops, "splits": self.splits}
        return found if self.embeddings is None else found | {"embeddings": self.embeddings}


_ONE_AT_A_TIME = threading.Lock()
"""The folds of an audit are trained in threads of one process. Seeds, deterministic algorithms and the export to ONNX belong to the process."""
Build = Callable[[Workspace], StepOutput]
"""Writes the step's files into a workspace."""


def train_classifier(
    crops: Artifact,
    splits: Artifact,
    plan: Plan,
    store: Store,
    settings: Settings,
    *,
    embeddings: Artifact | None = None,
    build_with: Callable[[Workspace, Build], StepOutput] | None = None,
) -> Artifact:
    """Train by the plan's recipe, and export the model.

    With ``train.select: validation`` the model learns from the train split, and val chooses. With cross_validation, folds of the
    locations of train and val choose, and the model learns from all of them.

    The artifact has model.onnx, card.json, weights.safetensors, history.parquet, trained_images.parquet and curves.png;
    cross_validation.parquet and out_of_fold.parquet, if folds or a head chose. A killed training continues from its last checkpoint. On the same
    machine (CPU) it ends with the same digest as an uninterrupted one.

    Args:
        crops: the artifact of the step crops.
        splits: the artifact of the step splits.
        plan: the sections train, model_input, labels.classes and package.torch_onnx_tolerance are part of the cache key. The card
            also records the sections that made the crops and splits.
        store: holds the crops; the model is written there.
        settings: where relative paths of weights start, and the number of threads that decode crops.
        embeddings: the artifact of the step embeddings; the recipe head needs it.
        build_with: trains somewhere else. It gets the workspace and the function that trains in this process.

    Raises:
        TrainingError: a class has no crop to train on, there is no val crop, the backbone or its weights do not fit, the loss is
            not finite, memory runs out, or torch and ONNX disagree.
        TrainingInterruptedError: the training was stopped; it continues when it is run again.
        WeightsError: the initial weights are missing or are not the expected file.
        DamagedError: a crop is missing from the store.
    """
    config = key_config(plan)
    inputs = TrainingInputs(crops, splits, plan, embeddings)
    initial = choose_initial_weights(plan, {"crops": crops, "splits": splits}, config, store, settings)

    def build(space: Workspace) -> StepOutput:
        with _ONE_AT_A_TIME:
            return _build(space, inputs, initial, store, settings)

    made_by = build if build_with is None else lambda space: build_with(space, build)
    return store.make(STEP, inputs=inputs.artifacts(), digests=initial.digests, config=config, build=made_by)


def key_config(plan: Plan) -> dict[str, Any]:
    """The part of the plan that shapes the model, for the cache key."""
    config: dict[str, Any] = {
        "model": plan.model,
        "classes": list(plan.labels.class_ids()),
        "model_input": plan.model_input.model_dump(mode="json"),
        "train": recorded_training(plan.train),
        "torch_onnx_tolerance": plan.package.torch_onnx_tolerance,
    } | {key: extra.id for key in ("nothing", "other_animal") if (extra := getattr(plan.labels, key))}
    if plan.train.recipes() == ("fine_tune",) and plan.train.select == "validation":
        return config
    return config | {"train_only": sorted(plan.splits.train_only)}  # folds never leave them out


def recorded_plan(plan: Plan) -> dict[str, Any]:
    """What the card records of the plan: everything that made the model, and the names of the sources. URLs lose their query."""
    sections: dict[str, Any] = plan.model_dump(mode="json", by_alias=True, include={"labels", "model_input", "detections", "crops", "splits"})
    sections["detections"]["detector"] = redact_url(plan.detections.detector)
    return {"sources": [source.name for source in plan.sources], **sections, "train": recorded_training(plan.train)}


def recorded_training(config: TrainingConfig) -> dict[str, Any]:
    """The section ``train`` without keys that do not shape the model. URLs of weights lose their query, which may be a signature."""
    section = config.model_dump(mode="json", exclude=set(RUN_SETTINGS))
    section |= {key: redact_url(section[key]) for key in ("weights", "fallback_weights")}
    section["networks"] = [network | {"weights": redact_url(network["weights"])} for network in section["networks"]]
    if config.recipes() == ("fine_tune",):
        unused = {"networks"} if config.select != "validation" else set(FOLDS_AND_HEADS)
        return {key: value for key, value in section.items() if key not in unused}
    return section if "fine_tune" in config.recipes() else {key: section[key] for key in (*FOLDS_AND_HEADS, "seed")}


def _build(space: Workspace, inputs: TrainingInputs, initial: InitialWeights, store: Store, settings: Settings) -> StepOutput:
    from animl_pipeline.steps.training.train_recipes import train_by_plan

    plan = inputs.plan
    rows = read_rows(inputs, store)
    by_folds = plan.train.by_folds(rows.loc[rows["location"] != "", "location"].nunique())
    optional = [c for c in (plan.labels.nothing_id, plan.labels.other_animal_id) if c]
    check_trainable(rows, plan.labels.class_ids(), optional, by_folds=by_folds)
    return train_by_plan(space, inputs, rows, initial, store, settings, by_folds=by_folds)


def read_rows(inputs: TrainingInputs, store: Store) -> pd.DataFrame:
    """The crops of train and val with their split, by crop_id."""
    columns = ["crop_id", "class_id", "blob", "location", "image", "phash", "source", "sequence"]
    rows = store.table(inputs.crops, CROPS, columns)
    rows = rows.merge(store.table(inputs.splits, SPLITS), on="crop_id", validate="one_to_one").sort_values("crop_id")
    return rows[rows["split"].isin(["train", "val"])]


def check_trainable(rows: pd.DataFrame, classes: Sequence[str], optional: Collection[str] = (), *, by_folds: bool = False) -> None:
    """Check that every class has a crop to train on, and that there is a val crop unless folds choose.

    The classes for false boxes and for other animals may lack one: the model never gives them then.

    Args:
        rows: class_id and split of the crops of train and val.
        classes: the class ids.
        optional: the classes that may lack one.
        by_folds: whether the model learns from val, too.

    Raises:
        TrainingError: ``unknown_class``, ``no_train_crop`` or ``no_val_crop``.
    """
    learnt = rows if by_folds else rows[rows["split"] == "train"]
    unknown = sorted(set(rows["class_id"]) - set(classes))
    if unknown:
        message = f"expected crops of {', '.join(classes)}, found crops of {', '.join(unknown)}; run the steps labels, crops and splits of this plan"
        raise TrainingError(message, code="unknown_class")
    lacking = [c for c in classes if not (learnt["class_id"] == c).any()]
    for absent in (c for c in lacking if c in optional):
        log.warning("there is no crop of %r to train on, so this class has no effect", absent)
    if lacking := [c for c in lacking if c not in optional]:
        message = f"no crop to train on for {', '.join(lacking)}; label more of it at more locations, or remove it from labels.classes"
        raise TrainingError(message, code="no_train_crop", classes=lacking)
    if not by_folds and not (rows["split"] == "val").any():
        message = "no crop to validate with (split val); raise splits.val, or add labels from more locations"
        raise TrainingError(message, code="no_val_crop")
