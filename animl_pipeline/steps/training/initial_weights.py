"""Where a training starts: the weights that the plan names, or those of the model that was released last."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Artifact
from animl_pipeline.deploy.released_model import model_with, released_model
from animl_pipeline.storage.remote import bare_address
from animl_pipeline.storage.step_cache import Manifest, Store, sha256_of

log = logging.getLogger(__name__)

RELEASED = "released"
WEIGHTS_FILE = "weights.safetensors"
PINNED_WEIGHTS = frozenset({"efficientnet-lite0-imagenet", "timm", "none"})
"""References that mean the same everywhere; the content of any other is part of the step's key."""


class Start(NamedTuple):
    """Where a training starts.

    ``plan`` names the weights that are used; ``model`` is the step whose weights go on, if one does; ``digests`` is what of it
    belongs to the step's key; ``told`` is what the card says.
    """

    plan: Plan
    model: Artifact | None
    digests: Mapping[str, str]
    told: str


def starting_point(plan: Plan, inputs: Mapping[str, Artifact], config: Mapping[str, Any], store: Store, settings: Settings) -> Start:
    """The plan's start; where it is the released model and there is none that fits, ``train.fallback_weights``, said aloud.

    A model that was itself trained on these inputs by this configuration does not go on from itself: it starts where it did, so
    that a retraining with nothing new after a release is known already.

    Raises:
        WeightsError: a weights file cannot be had.
    """
    if plan.train.weights != RELEASED:
        return Start(plan, None, _digest(plan, settings), bare_address(plan.train.weights))
    found = released_model(plan.endpoint_name(), store)
    reason = "no model of this store was released yet"
    while found is not None and _same_training(found, inputs, config):
        reason = "so did the released model, which was trained on the very same"
        found = model_with(WEIGHTS_FILE, found.inputs[RELEASED], store) if RELEASED in found.inputs else None
    if found is not None and found.config["plan"]["train"]["backbone"] != plan.train.backbone:
        reason, found = f"the released model is a {found.config['plan']['train']['backbone']}", None
    if found is None:
        return _otherwise(plan, reason, settings)
    version = found.files["model.onnx"].sha256[:12]
    log.info("training goes on from the released model %s", version)
    return Start(plan, found.artifact(cached=True), {RELEASED: found.files[WEIGHTS_FILE].sha256}, f"released model {version}")


def _otherwise(plan: Plan, reason: str, settings: Settings) -> Start:
    other = plan.model_copy(update={"train": plan.train.fresh()})
    told = bare_address(other.train.weights)
    log.warning("train.weights is released, but training starts from %s (train.fallback_weights): %s", told, reason)
    return Start(other, None, _digest(other, settings), told)


def _same_training(found: Manifest, inputs: Mapping[str, Artifact], config: Mapping[str, Any]) -> bool:
    same = {name: a.digest for name, a in inputs.items()}
    return {name: found.inputs.get(name) for name in same} == same and found.config == config


def _digest(plan: Plan, settings: Settings) -> Mapping[str, str]:
    """The content of a weights file that the plan names by place only: such a file may change."""
    if plan.train.weights in PINNED_WEIGHTS or plan.train.weights_sha256:
        return {}
    from animl_pipeline.integrations.weights import fetch_weights

    return {"weights": sha256_of(fetch_weights(plan.train.weights, settings, key="train.weights"))}
