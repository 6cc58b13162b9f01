"""Choose the weights that a training starts from: those that the plan names, or those of the released model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.training import TrainingConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import WeightsError, redact_url
from animl_pipeline.deploy.released_model import find_training, released_training
from animl_pipeline.inference.classifier import CARD_FILE, read_card
from animl_pipeline.steps.training.check_backbone_and_weights import PINNED_WEIGHTS, RELEASED
from animl_pipeline.steps.training.trained_images import describe_learnt_test_set
from animl_pipeline.storage.manifest import Manifest, sha256_of
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"


class InitialWeights(NamedTuple):
    """The weights that a training starts from.

    Attributes:
        config: the plan's section train; its ``weights`` are those that are used.
        model: the artifact of the training step whose weights are used, if any.
        digests: what belongs to the cache key.
        description: what the card says.
        learnt_by: the trainings in this store that made the weights of a fine-tuning, also as a file that the plan names.
        networks_learnt_by: those that made the weights of frozen networks.
    """

    config: TrainingConfig
    model: Artifact | None
    digests: Mapping[str, str]
    description: str
    learnt_by: tuple[Artifact, ...] = ()
    networks_learnt_by: tuple[Artifact, ...] = ()


def choose_initial_weights(plan: Plan, inputs: Mapping[str, Artifact], config: Mapping[str, Any], store: Store, settings: Settings) -> InitialWeights:
    """Choose the initial weights.

    With ``train.weights: released`` these are the released model's. If there is none that fits, or if it learnt from locations or
    images of the test set, a warning is logged and ``train.fallback_weights`` are used. A released model that was trained on the same
    inputs with the same config does not start from itself: it starts where it started before. So a retraining without new data after
    a release is cached.

    Args:
        plan: the plan.
        inputs: the artifacts that the training reads.
        config: the training step's part of the plan, as in its cache key.
        store: holds the released models.
        settings: where relative paths of weights start.

    Raises:
        WeightsError: a weights file is missing or is not the expected file; or it is of a model in the store that learnt from the test
            set (code "learnt_test_set").
    """
    if plan.train.needs_embeddings():
        networks, learnt_by = _check_networks(plan.train, inputs, store, settings)
        if "fine_tune" not in plan.train.recipes():
            names = " + ".join(n.network for n in plan.train.networks)
            return InitialWeights(plan.train, None, networks, names, networks_learnt_by=learnt_by)
        tuned = _choose_for_fine_tuning(plan, inputs, config, store, settings)
        return tuned._replace(digests={**tuned.digests, **networks}, networks_learnt_by=learnt_by)
    return _choose_for_fine_tuning(plan, inputs, config, store, settings)


def _choose_for_fine_tuning(
    plan: Plan, inputs: Mapping[str, Artifact], config: Mapping[str, Any], store: Store, settings: Settings
) -> InitialWeights:
    if plan.train.weights != RELEASED:
        return _check_test_set(_from_plan(plan.train, settings), inputs, store)
    found = released_training(plan, store)
    reason = "no model of this store was released yet"
    while found is not None and _is_same_training(found, inputs, config):
        reason = "the released model was trained on the same data from these weights"
        found = find_training(WEIGHTS_FILE, found.inputs[RELEASED], store) if RELEASED in found.inputs else None
    if found is not None and _is_head(found, store):
        reason, found = "the released model has a head on frozen networks", None
    if found is not None and found.config["train"]["backbone"] != plan.train.backbone:
        reason, found = f"the released model is a {found.config['train']['backbone']}", None
    if found is not None and (learnt := describe_learnt_test_set(found, inputs["crops"], inputs["splits"], store)):
        reason, found = f"the released model would know the test set: {learnt}", None
    if found is None:
        fallback = _check_test_set(_from_plan(plan.train.without_released_weights(), settings), inputs, store)
        log.warning("train.weights is released, but training starts from train.fallback_weights (%s): %s", fallback.description, reason)
        return fallback
    version = found.files["model.onnx"].sha256[:12]
    log.info("training starts from the released model %s", version)
    model, digests = found.artifact(cached=True), {RELEASED: found.files[WEIGHTS_FILE].sha256}
    return InitialWeights(plan.train, model, digests, f"released model {version}", (model,))


def _check_networks(
    config: TrainingConfig, inputs: Mapping[str, Artifact], store: Store, settings: Settings
) -> tuple[dict[str, str], tuple[Artifact, ...]]:
    """What belongs to the cache key of the weights of frozen networks, and the trainings in the store that made them.

    Files of this store that learnt from the test set are refused.
    """
    from animl_pipeline.integrations.weights import weights_digest

    found: dict[str, str] = {}
    learnt_by: tuple[Artifact, ...] = ()
    for number, network in enumerate(config.networks):
        digest = weights_digest(network.network, network.weights, settings, network.weights_sha256)
        if digest:
            checked = _check_test_set(InitialWeights(config, None, {"weights": digest}, redact_url(network.weights)), inputs, store)
            learnt_by += checked.learnt_by
            found[f"network {number}"] = digest
    return found, learnt_by


def _from_plan(config: TrainingConfig, settings: Settings) -> InitialWeights:
    """The weights that the section train names. The content of a file without a sha256 is hashed, since it may change."""
    digests = {}
    if config.weights not in PINNED_WEIGHTS and not config.weights_sha256:
        from animl_pipeline.integrations.weights import fetch_weights

        digests = {"weights": sha256_of(fetch_weights(config.weights, settings, key="train.weights"))}
    return InitialWeights(config, None, digests, redact_url(config.weights))


def _check_test_set(initial: InitialWeights, inputs: Mapping[str, Artifact], store: Store) -> InitialWeights:
    """The same initial weights with the training in the store that made them, if that did not learn from the test set.

    Raises:
        WeightsError: they are.
    """
    sha256 = initial.digests.get("weights") or initial.config.weights_sha256
    training = find_training(WEIGHTS_FILE, sha256, store) if sha256 else None
    learnt = describe_learnt_test_set(training, inputs["crops"], inputs["splits"], store) if training else ""
    if learnt:
        raise WeightsError(
            f"expected weights of a model that does not know the test set, found {initial.description}, which a training in this store made: "
            f"{learnt}; name other weights, or use the test set that this model was trained with (splits.test_set)",
            code="learnt_test_set",
        )
    return initial if training is None else initial._replace(learnt_by=(training.artifact(cached=True),))


def _is_head(found: Manifest, store: Store) -> bool:
    """Whether a training made a head on frozen networks."""
    selected = read_card(store.path(found.artifact(cached=True), CARD_FILE)).plan.get("selected", {})
    return bool(selected.get("recipe") == "head")


def _is_same_training(found: Manifest, inputs: Mapping[str, Artifact], config: Mapping[str, Any]) -> bool:
    return all(found.inputs.get(name) == artifact.digest for name, artifact in inputs.items()) and found.config == config
