"""What can be said of a plan's backbone and weights before torch is loaded and before hours are spent on the data."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.integrations.weights import check_weights
from animl_pipeline.steps.training.initial_weights import PINNED_WEIGHTS, RELEASED

LITE0 = "tf_efficientnet_lite0"
LITE0_WEIGHTS = "efficientnet-lite0-imagenet"


def check_ready(plan: Plan, settings: Settings) -> None:
    """See that timm knows the plan's backbone, and that its weights are such as fit and can be asked for. Nothing is fetched.

    Raises:
        TrainingError: timm does not know the backbone, or such weights are not for it.
        WeightsError: there is no such file, or nobody says the sha256 of what lies at an address.
    """
    train = plan.train
    check_backbone(train.backbone)
    check_fitting(train.weights, train.backbone)
    key, weights = "train.weights", train.weights
    if weights == RELEASED:  # what stands in need not fit the backbone while there is a released model
        key, weights = "train.fallback_weights", train.fallback_weights
        check_form(weights, key=key)
    if weights not in PINNED_WEIGHTS:
        check_weights(weights, settings, train.weights_sha256, key=key)


def check_backbone(backbone: str) -> None:
    """See that timm has such an architecture.

    Raises:
        TrainingError: it has not; says which are near it.
    """
    if _stands_in_timm(backbone.split(".", maxsplit=1)[0]):
        return
    import timm

    if timm.is_model(backbone):
        return
    near = difflib.get_close_matches(backbone, timm.list_models(), n=5)
    hint = f"near it are {', '.join(near)}" if near else "timm.list_models() lists them"
    raise TrainingError(f"train.backbone: expected an architecture of timm {timm.__version__}, found {backbone!r}; {hint}")


def check_fitting(weights: str, backbone: str) -> None:
    """See that weights are such as a training can start from, with this backbone.

    Raises:
        TrainingError: not so.
    """
    check_form(weights, key="train.weights")
    if weights == LITE0_WEIGHTS and backbone.split(".", maxsplit=1)[0] != LITE0:
        raise TrainingError(f"train.weights: {LITE0_WEIGHTS} fits the backbone {LITE0} only, found {backbone}; set train.weights to timm or none")


def check_form(weights: str, *, key: str) -> None:
    """See that weights are named by a word that is known, or are a .safetensors file somewhere.

    Raises:
        TrainingError: not so; says what is known.
    """
    if weights == RELEASED or weights in PINNED_WEIGHTS:
        return
    bare = bare_name(weights)
    if not bare.endswith(".safetensors"):
        raise TrainingError(f"{key}: expected {LITE0_WEIGHTS}, timm, none, released or a .safetensors file, found {bare!r}")


def bare_name(weights: str) -> str:
    """A reference without what follows an address, which may be a signature."""
    return weights.partition("?")[0] if "://" in weights else weights


def _stands_in_timm(name: str) -> bool:
    """Whether timm's sources register an architecture of this name.

    Importing timm loads torch, which takes seconds that a run of known steps has no need for; only a name that is not found so
    is worth asking timm itself.
    """
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        return False
    registered = re.compile(rf"^@register_model\s+def {re.escape(name)}\(", re.MULTILINE)
    return any(registered.search(path.read_text(encoding="utf-8")) for path in (Path(found.origin).parent / "models").glob("*.py"))
