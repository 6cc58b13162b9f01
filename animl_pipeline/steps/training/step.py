"""The training step: crops and their split in; the ONNX model, its card and the training history out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.training import RUN_SETTINGS, TrainingConfig
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import TrainingError, redact_url
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS, TRAINED_IMAGES, TRAINING_HISTORY
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.training.choose_initial_weights import InitialWeights, choose_initial_weights
from animl_pipeline.steps.training.plot_learning_curves import CURVES_FILE, plot_training_curves
from animl_pipeline.steps.training.trained_images import list_trained_images
from animl_pipeline.storage.manifest import digest_of
from animl_pipeline.storage.store import StepOutput, Store, Workspace

log = logging.getLogger(__name__)

STEP = Step(
    "training",
    version=2,
    sections=("train", "model_input", "labels", "package"),  # of labels the classes only, of package the tolerance only
    reads=(CROPS, SPLITS),
    writes=(TRAINING_HISTORY, TRAINED_IMAGES),
    libraries=("pillow", "torch", "torchvision", "timm", "lightning", "onnx"),
)
CHECKPOINT_FILE = "checkpoint.ckpt"
"""The last checkpoint of a training that has not finished, in the step's scratch folder."""

Build = Callable[[Workspace], StepOutput]
"""Writes the step's files into a workspace."""


def train_classifier(
    crops: Artifact,
    splits: Artifact,
    plan: Plan,
    store: Store,
    settings: Settings,
    *,
    build_with: Callable[[Workspace, Build], StepOutput] | None = None,
) -> Artifact:
    """Train on the train split, keep the epoch that is best on val, and export it.

    The artifact has model.onnx, card.json, weights.safetensors, history.parquet, trained_images.parquet and curves.png. A killed
    training continues from its last checkpoint. On the same machine (CPU) it ends with the same digest as an uninterrupted one.

    Args:
        crops: the artifact of the step crops.
        splits: the artifact of the step splits.
        plan: the sections train, model_input, labels.classes and package.torch_onnx_tolerance are part of the cache key. The card
            also records the sections that made the crops and splits.
        store: holds the crops; the model is written there.
        settings: where relative paths of weights start, and the number of threads that decode crops.
        build_with: trains somewhere else. It gets the workspace and the function that trains in this process.

    Raises:
        TrainingError: a class has no crop to train on, there is no val crop, the backbone or its weights do not fit, the loss is
            not finite, memory runs out, or torch and ONNX disagree.
        TrainingInterruptedError: the training was stopped; it continues when it is run again.
        WeightsError: the initial weights are missing or are not the expected file.
        DamagedError: a crop is missing from the store.
    """
    config = key_config(plan)
    inputs = {"crops": crops, "splits": splits}
    initial = choose_initial_weights(plan, inputs, config, store, settings)

    def build(space: Workspace) -> StepOutput:
        return _build(space, crops, splits, plan, initial, store, settings)

    made_by = build if build_with is None else lambda space: build_with(space, build)
    return store.make(STEP, inputs=inputs, digests=initial.digests, config=config, build=made_by)


def key_config(plan: Plan) -> dict[str, Any]:
    """The part of the plan that shapes the model, for the cache key."""
    return {
        "model": plan.model,
        "classes": list(plan.labels.class_ids()),
        "model_input": plan.model_input.model_dump(mode="json"),
        "train": recorded_training(plan.train),
        "torch_onnx_tolerance": plan.package.torch_onnx_tolerance,
    } | ({"nothing": plan.labels.nothing_id} if plan.labels.nothing else {})


def recorded_plan(plan: Plan) -> dict[str, Any]:
    """What the card records of the plan: everything that made the model, and the names of the sources. URLs lose their query."""
    sections: dict[str, Any] = plan.model_dump(mode="json", by_alias=True, include={"labels", "model_input", "detections", "crops", "splits"})
    sections["detections"]["detector"] = redact_url(plan.detections.detector)
    return {"sources": [source.name for source in plan.sources], **sections, "train": recorded_training(plan.train)}


def recorded_training(config: TrainingConfig) -> dict[str, Any]:
    """The section ``train`` without keys that do not shape the model. URLs of weights lose their query, which may be a signature."""
    section = config.model_dump(mode="json", exclude=set(RUN_SETTINGS))
    return section | {key: redact_url(section[key]) for key in ("weights", "fallback_weights")}


def _build(space: Workspace, crops: Artifact, splits: Artifact, plan: Plan, initial: InitialWeights, store: Store, settings: Settings) -> StepOutput:
    from animl_pipeline.steps.training.dataloaders import decode_split
    from animl_pipeline.steps.training.network_and_weights import build_from_released, build_network
    from animl_pipeline.steps.training.onnx_export import write_model
    from animl_pipeline.steps.training.trainer import train_network

    classes = plan.labels.class_ids()
    rows = store.table(crops, CROPS, ["crop_id", "class_id", "blob", "location", "image"])
    rows = rows.merge(store.table(splits, SPLITS), on="crop_id", validate="one_to_one").sort_values("crop_id")
    tables = {name: rows[rows["split"] == name] for name in ("train", "val")}
    check_trainable(tables, classes, plan.labels.nothing_id)
    train, val = (
        decode_split(table, classes, store, plan.model_input.size, space.scratch / f"{name}.crops", settings.workers)
        for name, table in tables.items()
    )
    if initial.model is None:
        network = build_network(initial.config, classes, plan.model_input, settings)
    else:
        network = build_from_released(initial.config, classes, plan.model_input, initial.model, store)
    curves = store.local / "tensorboard" / plan.model / space.scratch.parent.name
    checkpoint = space.scratch / CHECKPOINT_FILE
    history = train_network(network, train, val, initial.config, plan.model_input, checkpoint, curves)
    data_digest = digest_of([crops.digest, splits.digest])
    write_model(network, plan, recorded_plan(plan), initial.description, data_digest, train, val, space.out)
    write_table(space.out, TRAINING_HISTORY, history)
    write_table(space.out, TRAINED_IMAGES, list_trained_images(rows[rows["split"].isin(tables)], initial.model, store))
    (space.out / CURVES_FILE).write_bytes(plot_training_curves(history))
    return StepOutput(Counts(kept=len(train.targets), unit="crops", notes={"val_crops": len(val.targets), "epochs": len(history)}))


def check_trainable(tables: dict[str, pd.DataFrame], classes: Sequence[str], nothing: str | None = None) -> None:
    """Check that every class has a train crop and that there is a val crop. The class for false boxes may lack one: the model never gives it then.

    Raises:
        TrainingError: ``unknown_class``, ``no_train_crop`` or ``no_val_crop``.
    """
    unknown = sorted(set(pd.concat(tables.values())["class_id"]) - set(classes))
    if unknown:
        message = f"expected crops of {', '.join(classes)}, found crops of {', '.join(unknown)}; run the steps labels, crops and splits of this plan"
        raise TrainingError(message, code="unknown_class")
    lacking = [c for c in classes if not (tables["train"]["class_id"] == c).any()]
    if nothing in lacking:
        log.warning("the detector found no false box to train on, so the class %r has no effect", nothing)
        lacking.remove(nothing)
    if lacking:
        message = f"no crop to train on for {', '.join(lacking)}; label more of it at more locations, or remove it from labels.classes"
        raise TrainingError(message, code="no_train_crop", classes=lacking)
    if tables["val"].empty:
        message = "no crop to validate with (split val); raise splits.val, or add labels from more locations"
        raise TrainingError(message, code="no_val_crop")
