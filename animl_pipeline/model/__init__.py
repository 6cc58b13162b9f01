"""Crops and their split → a trained classifier as ONNX, with its card, and the proof that ONNX and torch agree.

torch, timm and lightning are loaded when the verb has something to train, never by importing this room.

::

    network    the timm backbone and the weights that it starts from
    loading    crops as batches: decoded once, sampled, augmented, and normalised by ``pixels``
    learner    the Lightning module: losses, phases, learning rate, scores on val, the best weights
    fitting    one run of Lightning's trainer that a kill does not lose
    quiet      other people's loggers, turned down
    exporting  best weights → model.onnx, and how far its answers are from torch's
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from animl_pipeline.plan import Plan
from animl_pipeline.records import Artifact
from animl_pipeline.remote import bare_address
from animl_pipeline.settings import Settings
from animl_pipeline.store import Made, Store, Workspace, sha256_of

__all__ = ["train_classifier"]

PINNED_WEIGHTS = frozenset({"efficientnet-lite0-imagenet", "timm", "none"})
"""References that mean the same everywhere; the content of any other is part of the step's key."""


def train_classifier(crops: Artifact, splits: Artifact, plan: Plan, store: Store, settings: Settings) -> Artifact:
    """A classifier trained on the train split, chosen on val: model.onnx, card.json, weights.safetensors, history.parquet.

    Killed at any moment it goes on from its last checkpoint, and ends with the same digest as an uninterrupted run on
    the same machine (CPU).

    Args:
        crops: the step crops (crops.parquet and its lossless blobs of exactly ``plan.view.size``).
        splits: the step splits (splits.parquet).
        plan: its view, labels and train parts count, and the package's tolerance.
        store: where crops come from and the model goes to.
        settings: where relative paths of weights start.

    Raises:
        TrainingError: a class has nothing to train on, there is nothing to validate with, the backbone or its weights do
            not fit, the loss ran away, memory did not suffice, or torch and ONNX do not agree.
        WeightsError: the pretrained weights cannot be had or are not the expected ones.
        DamagedError: a crop is missing from the store.
    """

    def build(space: Workspace) -> Made:
        from animl_pipeline.model.training import build_model

        return build_model(space, crops, splits, plan, store, settings, recorded_plan(plan))

    config = {"model": plan.model, "plan": recorded_plan(plan), "tolerance": plan.package.torch_onnx_tolerance}
    inputs = {"crops": crops, "splits": splits}
    return store.make("model", room="model", inputs=inputs, digests=_weights_digest(plan, settings), config=config, build=build)


def recorded_plan(plan: Plan) -> dict[str, Any]:
    """The parts of a plan that make the model what it is, as the card records them.

    Sources are there by their names, and addresses of weights without their query: a card travels, a signature must not.
    """
    parts: dict[str, Any] = plan.model_dump(mode="json", by_alias=True)
    kept = {name: parts[name] for name in ("labels", "view", "detections", "crops", "splits", "train")}
    kept["train"]["weights"] = bare_address(plan.train.weights)
    kept["detections"]["detector"] = bare_address(plan.detections.detector)
    return {"sources": [source.name for source in plan.sources], **kept}


def _weights_digest(plan: Plan, settings: Settings) -> Mapping[str, str]:
    """The content of a weights file that the plan names by place only: such a file may change."""
    if plan.train.weights in PINNED_WEIGHTS or plan.train.weights_sha256:
        return {}
    from animl_pipeline.weights import fetch_weights

    return {"weights": sha256_of(fetch_weights(plan.train.weights, settings, key="train.weights"))}
