"""Crops and their split → a trained classifier as ONNX, with its card, and the proof that ONNX and torch agree.

torch, timm and lightning are loaded when the verb has something to train, never by importing this room.

::

    checking   what can be said of backbone and weights ahead
    starting   the weights that training starts from: the plan's, or the released model's
    network    the timm backbone with them
    loading    crops as batches: decoded once, sampled, altered, and normalised by ``pixels``
    altering   how crops are altered: flips, infrared, grass in front …; mixup
    losses     what is minimised
    phases     which weights learn, when, and how fast
    learner    the Lightning module: a step, scores on val, the best weights
    memory     steps in smaller parts when memory runs out
    depthwise  convolutions that learn fast in bfloat16 on CPUs
    fitting    one run of Lightning's trainer that a kill does not lose
    quiet      other people's loggers, turned down
    curves     how it went on, as a picture
    exporting  best weights → model.onnx, and how far its answers are from torch's
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Artifact
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS, TRAINING_HISTORY
from animl_pipeline.steps.training.initial_weights import starting_point
from animl_pipeline.steps.training.plots import CURVES_FILE
from animl_pipeline.steps.training.preflight import check_ready
from animl_pipeline.storage.remote import bare_address
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

STEP = Step(
    "training",
    version=1,
    sections=("train", "model_input", "labels"),
    reads=(CROPS, SPLITS),
    writes=(TRAINING_HISTORY,),
    libraries=("pillow", "torch", "timm", "lightning", "onnx"),
)


__all__ = ["CURVES_FILE", "check_ready", "train_classifier"]

Build = Callable[[Workspace], StepOutput]
"""Makes the step's files in a workspace."""


def train_classifier(
    crops: Artifact, splits: Artifact, plan: Plan, store: Store, settings: Settings, *, by: Callable[[Workspace, Build], StepOutput] | None = None
) -> Artifact:
    """A classifier trained on the train split, chosen on val: model.onnx, card.json, weights.safetensors, history.parquet and
    its curves.png.

    Killed at any moment it goes on from its last checkpoint, and ends with the same digest as an uninterrupted run on
    the same machine (CPU).

    Args:
        crops: the step crops (crops.parquet and its lossless blobs of exactly ``plan.view.size``).
        splits: the step splits (splits.parquet).
        plan: its view, labels and train parts count, and the package's tolerance.
        store: where crops come from and the model goes to.
        settings: where relative paths of weights start.
        by: has the files made in a workspace where this process shall not simply train: given the workspace and what trains here.

    Raises:
        TrainingError: a class has nothing to train on, there is nothing to validate with, the backbone or its weights do
            not fit, the loss ran away, memory did not suffice, or torch and ONNX do not agree.
        WeightsError: the pretrained weights cannot be had or are not the expected ones.
        DamagedError: a crop is missing from the store.
    """
    config = {"model": plan.model, "plan": recorded_plan(plan), "tolerance": plan.package.torch_onnx_tolerance}
    inputs = {"crops": crops, "splits": splits}
    start = starting_point(plan, inputs, config, store, settings)

    def build(space: Workspace) -> StepOutput:
        from animl_pipeline.steps.training.step import build_model

        return build_model(space, crops, splits, start, store, settings, recorded_plan(plan))

    made_by = build if by is None else lambda space: by(space, build)
    return store.make(STEP, inputs=inputs, digests=start.digests, config=config, build=made_by)


def recorded_plan(plan: Plan) -> dict[str, Any]:
    """The parts of a plan that make the model what it is, as the card records them.

    Sources are there by their names, and addresses of weights without their query: a card travels, a signature must not. On which
    machine it is trained is no part of it.
    """
    parts: dict[str, Any] = plan.model_dump(mode="json", by_alias=True)
    kept = {name: parts[name] for name in ("labels", "model_input", "detections", "crops", "splits", "train")}
    kept["train"]["weights"] = bare_address(plan.train.weights)
    kept["train"]["fallback_weights"] = bare_address(plan.train.fallback_weights)
    for elsewhere in ("on", "sagemaker"):
        del kept["train"][elsewhere]
    kept["detections"]["detector"] = bare_address(plan.detections.detector)
    return {"sources": [source.name for source in plan.sources], **kept}
