"""Check the plan's backbone and initial weights before hours are spent on the data. torch is not loaded, nothing is downloaded."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.training import FrozenNetworkConfig
from animl_pipeline.core.errors import TrainingError, redact_url
from animl_pipeline.core.step_declaration import installed_version
from animl_pipeline.integrations.weights import NETWORKS_KEY, check_weights, known_weights, list_known_weights

RELEASED = "released"
PINNED_WEIGHTS = frozenset({"efficientnet-lite0-imagenet", "timm", "none"})
"""Names of weights that are the same everywhere. Of all other weights the content is part of the cache key."""
LITE0 = "tf_efficientnet_lite0"
LITE0_WEIGHTS = "efficientnet-lite0-imagenet"
FROZEN_DETECTOR = "megadetector-lite"


def check_backbone_and_weights(plan: Plan, settings: Settings) -> None:
    """Check that timm knows the backbone, and that the initial weights fit it and can be fetched.

    Raises:
        TrainingError: timm does not know the backbone, or the weights are not for it.
        WeightsError: the weights file does not exist, or a URL has no sha256.
    """
    train = plan.train
    if train.needs_embeddings():
        for network in train.networks:
            _check_network(network, settings)
    if "fine_tune" not in train.recipes():
        return
    check_backbone(train.backbone)
    check_weights_fit(train.weights, train.backbone)
    key, weights = "train.weights", train.weights
    if weights == RELEASED:  # the fallback weights need not fit the backbone while there is a released model
        key, weights = "train.fallback_weights", train.fallback_weights
        _check_kind(weights, key=key)
    if weights not in PINNED_WEIGHTS:
        check_weights(weights, settings, train.weights_sha256, key=key)


def _check_network(network: FrozenNetworkConfig, settings: Settings) -> None:
    """Check that a frozen network is known and that its weights can be fetched."""
    known = known_weights(network.network)
    if known is not None:
        if not known.backbone and known.name != FROZEN_DETECTOR:
            names = ", ".join(w.name for w in list_known_weights() if w.backbone or w.name == FROZEN_DETECTOR)
            message = f"train.networks: expected one of {names}, or an architecture of timm, found {known.name}"
            raise TrainingError(message, code="unknown_network")
        if not known.file_of_user:
            return
    else:
        check_backbone(network.network, key="train.networks")
    if known is not None or network.weights not in {"timm", "none"}:
        if not redact_url(network.weights).endswith(".safetensors"):
            expected = f"the .safetensors file of {known.name} (docs/training.md)" if known else "weights timm, none or a .safetensors file"
            message = f"train.networks: expected {expected}, found {redact_url(network.weights)!r}"
            raise TrainingError(message, code="unknown_weights")
        check_weights(network.weights, settings, network.weights_sha256, key=NETWORKS_KEY)


def check_backbone(backbone: str, *, key: str = "train.backbone") -> None:
    """Check that timm has this architecture.

    Raises:
        TrainingError: ``unknown_backbone``; the message lists similar names.
    """
    name, source = backbone.split(".", maxsplit=1)[0], _timm_source()
    known = re.findall(r"^@register_model\s+def (\w+)\(", source, re.MULTILINE)
    if name in known:
        return
    if f"'{backbone}'" in source:  # perhaps a deprecated name
        import timm

        if timm.is_model(backbone):
            return
    similar = difflib.get_close_matches(name, known, n=5)
    hint = f"similar names: {', '.join(similar)}" if similar else "timm.list_models() lists them"
    message = f"{key}: expected an architecture of timm {installed_version('timm')}, found {backbone!r}; {hint}"
    raise TrainingError(message, code="unknown_backbone", similar=similar)


def check_weights_fit(weights: str, backbone: str) -> None:
    """Check that a training can start from these weights with this backbone.

    Raises:
        TrainingError: ``unknown_weights`` or ``weights_do_not_fit``.
    """
    _check_kind(weights, key="train.weights")
    if weights == LITE0_WEIGHTS and backbone.split(".", maxsplit=1)[0] != LITE0:
        message = f"train.weights: {LITE0_WEIGHTS} needs the backbone {LITE0}, found {backbone}; set train.weights to timm or none"
        raise TrainingError(message, code="weights_do_not_fit")


def _check_kind(weights: str, *, key: str) -> None:
    """Check that weights are a known name or a .safetensors file."""
    if weights != RELEASED and weights not in PINNED_WEIGHTS and not redact_url(weights).endswith(".safetensors"):
        message = f"{key}: expected {LITE0_WEIGHTS}, timm, none, released or a .safetensors file, found {redact_url(weights)!r}"
        raise TrainingError(message, code="unknown_weights")


def _timm_source() -> str:
    """The source of timm's architectures. Importing timm loads torch, which takes seconds; a run of cached steps should not pay for that."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        return ""
    return "\n".join(path.read_text(encoding="utf-8") for path in (Path(found.origin).parent / "models").glob("*.py"))
