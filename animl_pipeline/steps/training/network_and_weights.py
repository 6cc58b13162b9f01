"""Build the network: a timm backbone with a new classifier layer, and its initial weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from animl_pipeline.config import TrainingConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import TrainingError, WeightsUnreachableError, redact_url
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.inference.classifier import CARD_FILE, read_card
from animl_pipeline.integrations.weights import fetch_weights
from animl_pipeline.steps.training.check_backbone_and_weights import LITE0, LITE0_WEIGHTS, check_backbone, check_weights_fit
from animl_pipeline.steps.training.choose_initial_weights import WEIGHTS_FILE
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)


def build_network(config: TrainingConfig, classes: Sequence[str], model_input: ModelInput, settings: Settings) -> nn.Module:
    """The plan's backbone with one output for each class and the plan's initial weights. The seed draws the classifier layer.

    Raises:
        TrainingError: timm does not know the backbone, or the weights do not fit it.
        WeightsError: the weights are missing or are not the expected file.
        WeightsUnreachableError: the host of the weights does not answer now.
    """
    check_backbone(config.backbone)
    check_weights_fit(config.weights, config.backbone)
    torch.manual_seed(config.seed)
    if config.weights == "none":
        return _create(config, len(classes), model_input)
    if config.weights == "timm":
        network = _load_from_hub(config, len(classes), model_input)
    elif config.weights == LITE0_WEIGHTS:
        network = _load_lite0(config, len(classes), model_input, settings)
    else:
        return _load_file(config, len(classes), model_input, settings)
    pretrained: Any = network.pretrained_cfg
    expected, found = (tuple(pretrained["mean"]), tuple(pretrained["std"])), (model_input.mean, model_input.std)
    if expected != found:  # it costs accuracy
        log.warning(
            "the weights were trained with mean %s and std %s, the plan has %s and %s; set model_input.mean and model_input.std to the former",
            *map(list, (*expected, *found)),
        )
    return network


def build_from_released(config: TrainingConfig, classes: Sequence[str], model_input: ModelInput, model: Artifact, store: Store) -> nn.Module:
    """The network of a training step, to be trained further. Of its classifier layer, the rows of classes that are still in the plan stay.

    Raises:
        TrainingError: its weights do not fit the backbone.
    """
    torch.manual_seed(config.seed)
    network = _create(config, len(classes), model_input)
    tensors = _read_safetensors(store.path(model, WEIGHTS_FILE))
    _load_body(network, tensors, config.backbone, "the released model")
    before = list(read_card(store.path(model, CARD_FILE)).class_ids())
    kept = [(now, before.index(c)) for now, c in enumerate(classes) if c in before]
    with torch.no_grad():
        for name in head_modules(network):
            for key, parameter in network.get_submodule(name).named_parameters(prefix=name):
                for now, then in kept:
                    parameter[now] = tensors[key][then]
    log.info("the released model has %d classes: %d are kept, %d are new", len(before), len(kept), len(classes) - len(kept))
    return network


def head_modules(network: nn.Module) -> tuple[str, ...]:
    """Names of the classifier layers, such as ``("classifier",)``."""
    names: str | tuple[str, ...] = network.pretrained_cfg["classifier"]  # type: ignore[index, assignment]  # timm sets it on every model
    return (names,) if isinstance(names, str) else tuple(names)


def _create(config: TrainingConfig, classes: int, model_input: ModelInput, *, pretrained: bool = False) -> nn.Module:
    """The network with timm's initial weights. Architectures of a fixed input size get the plan's size."""
    known = timm.get_pretrained_cfg(config.backbone)
    options: dict[str, Any] = {"img_size": model_input.size} if known is not None and known.fixed_input_size else {}
    options |= {name: rate for name, rate in (("drop_rate", config.dropout), ("drop_path_rate", config.drop_path)) if rate}
    try:
        network: nn.Module = timm.create_model(config.backbone, pretrained=pretrained, num_classes=classes, **options)
    except TypeError as e:
        if "drop" not in str(e):
            raise
        message = f"train.dropout, train.drop_path: {config.backbone} does not support both ({_first_line(e)}); set the unsupported one to 0"
        raise TrainingError(message) from e
    return network


def _load_from_hub(config: TrainingConfig, classes: int, model_input: ModelInput) -> nn.Module:
    log.info("%s: weights from timm's hub", config.backbone)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    try:
        return _create(config, classes, model_input, pretrained=True)
    except (OSError, RuntimeError, ValueError) as e:  # raised here by urllib, requests, huggingface_hub and timm
        message = (
            f"train.weights: timm's weights of {config.backbone} cannot be downloaded ({_first_line(e)}); check the network, or set"
            f" train.weights to {LITE0_WEIGHTS} (with train.backbone {LITE0}), to a .safetensors file, or to none"
        )
        error = WeightsUnreachableError if isinstance(e, OSError) else TrainingError
        raise error(message, code="no_hub_weights") from e


def _load_lite0(config: TrainingConfig, classes: int, model_input: ModelInput, settings: Settings) -> nn.Module:
    """EfficientNet-Lite0's ImageNet weights. Their tensors have timm's order and shapes, but other names."""
    path = fetch_weights(LITE0_WEIGHTS, settings, config.weights_sha256, key="train.weights")
    network = _create(config, 1000, model_input)
    given = torch.load(path, map_location="cpu", weights_only=True)
    wanted = network.state_dict()
    if [tuple(t.shape) for t in given.values()] != [tuple(t.shape) for t in wanted.values()]:
        raise TrainingError(f"train.weights: the tensors of {path.name} are not those of {LITE0}; set train.weights to timm or none")
    network.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    network.reset_classifier(classes)  # type: ignore[operator]  # every timm model has it
    return network


def _load_file(config: TrainingConfig, classes: int, model_input: ModelInput, settings: Settings) -> nn.Module:
    """Weights of a .safetensors file. The classifier layer is new, since the file may have other classes."""
    network = _create(config, classes, model_input)
    path = fetch_weights(config.weights, settings, config.weights_sha256, key="train.weights")
    _load_body(network, _read_safetensors(path), config.backbone, redact_url(config.weights))
    return network


def _load_body(network: nn.Module, tensors: dict[str, Any], backbone: str, origin: str) -> None:
    """Load all weights except the classifier layers'."""
    heads = tuple(f"{name}." for name in head_modules(network))
    wanted = {name: t for name, t in network.state_dict().items() if not name.startswith(heads)}
    body = {name: t for name, t in tensors.items() if not name.startswith(heads)}
    different = sorted(wanted.keys() ^ body.keys()) or [n for n, t in wanted.items() if t.shape != body[n].shape]
    if different:
        message = f"train.weights: {origin} does not fit {backbone}: {len(different)} tensors differ, such as {different[0]}"
        raise TrainingError(f"{message}; set train.backbone to the architecture of these weights", code="weights_do_not_fit")
    network.load_state_dict(body, strict=False)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as e:
        raise TrainingError(f"train.weights: {path.name} is not a readable .safetensors file ({_first_line(e)})", code="unreadable_weights") from e


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
