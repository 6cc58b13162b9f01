"""The network: a timm backbone with a new head, and the weights that it starts from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.records import Artifact
from animl_pipeline.inference.classifier import CARD_FILE, read_card
from animl_pipeline.integrations.weights import fetch_weights
from animl_pipeline.steps.training.initial_weights import WEIGHTS_FILE
from animl_pipeline.steps.training.preflight import LITE0, LITE0_WEIGHTS, bare_name, check_backbone, check_fitting
from animl_pipeline.steps.training.quiet import quieter
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)


def build_network(plan: Plan, settings: Settings) -> nn.Module:
    """The plan's backbone with one output a class, its weights as the plan says, the head drawn by the plan's seed.

    Raises:
        TrainingError: timm does not know the backbone, or the weights do not fit it.
        WeightsError: the weights cannot be had.
    """
    backbone, weights, classes = plan.train.backbone, plan.train.weights, len(plan.labels.classes)
    check_backbone(backbone)
    check_fitting(weights, backbone)
    torch.manual_seed(plan.train.seed)
    if weights == "none":
        return _create(plan, classes)
    if weights == "timm":
        network = _from_hub(plan, classes)
    elif weights == LITE0_WEIGHTS:
        network = _from_lite0(plan, settings)
    else:
        return _from_file(plan, settings)
    _compare_normalisation(network, plan)
    return network


def head_of(network: nn.Module) -> tuple[str, ...]:
    """The names of the modules that classify, such as ``("classifier",)``."""
    names: str | tuple[str, ...] = network.pretrained_cfg["classifier"]  # type: ignore[index, assignment]  # timm sets it on every model
    return (names,) if isinstance(names, str) else tuple(names)


def _create(plan: Plan, classes: int, *, pretrained: bool = False) -> nn.Module:
    """The bare network; architectures of one input size are told the view's."""
    config = timm.get_pretrained_cfg(plan.train.backbone)
    extra: dict[str, Any] = {"img_size": plan.model_input.size} if config is not None and config.fixed_input_size else {}
    extra |= {name: rate for name, rate in (("drop_rate", plan.train.dropout), ("drop_path_rate", plan.train.drop_path)) if rate}
    try:
        network: nn.Module = timm.create_model(plan.train.backbone, pretrained=pretrained, num_classes=classes, **extra)
    except TypeError as e:
        if "drop" not in str(e):
            raise
        raise TrainingError(f"train.dropout, train.drop_path: {plan.train.backbone} has not both ({_first_line(e)}); set what it lacks to 0") from e
    return network


def _from_hub(plan: Plan, classes: int) -> nn.Module:
    log.info("%s: weights from timm's hub", plan.train.backbone)
    try:
        with quieter("huggingface_hub", level=logging.ERROR):  # it announces every retry; one line says how it ended
            return _create(plan, classes, pretrained=True)
    except (OSError, RuntimeError, ValueError) as e:  # what urllib, requests, huggingface_hub and timm raise here
        raise TrainingError(
            f"train.weights: timm's weights of {plan.train.backbone} could not be had ({_first_line(e)}); check the network, or set"
            f" train.weights to {LITE0_WEIGHTS} (with train.backbone {LITE0}), to a .safetensors file, or to none"
        ) from e


def _from_lite0(plan: Plan, settings: Settings) -> nn.Module:
    """EfficientNet-Lite0's ImageNet weights, whose tensors are timm's in order and shape under other names."""
    path = fetch_weights(LITE0_WEIGHTS, settings, plan.train.weights_sha256, key="train.weights")
    network = _create(plan, 1000)
    given = torch.load(path, map_location="cpu", weights_only=True)
    wanted = network.state_dict()
    if [tuple(t.shape) for t in given.values()] != [tuple(t.shape) for t in wanted.values()]:
        raise TrainingError(f"train.weights: the tensors of {path.name} are not those of {LITE0}; set train.weights to timm or none")
    network.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    network.reset_classifier(len(plan.labels.classes))  # type: ignore[operator]  # every timm model has it
    return network


def _from_file(plan: Plan, settings: Settings) -> nn.Module:
    """Weights of a .safetensors file: all but the head, which is new, since its classes may be others."""
    reference = plan.train.weights
    network = _create(plan, len(plan.labels.classes))
    _load_body(
        network, _read_safetensors(fetch_weights(reference, settings, plan.train.weights_sha256, key="train.weights")), plan, bare_name(reference)
    )
    return network


def continued(plan: Plan, model: Artifact, store: Store) -> nn.Module:
    """The network of a step 'model', to be trained further: its body, and of its head the rows of classes that are still there.

    Raises:
        TrainingError: it does not fit the backbone as the plan has it now.
    """
    torch.manual_seed(plan.train.seed)
    network = _create(plan, len(plan.labels.classes))
    given = _read_safetensors(store.path(model, WEIGHTS_FILE))
    _load_body(network, given, plan, "the released model")
    before = list(read_card(store.path(model, CARD_FILE)).class_ids())
    stay = [(now, before.index(c)) for now, c in enumerate(plan.labels.classes) if c in before]
    with torch.no_grad():
        for name in head_of(network):
            for key, tensor in network.get_submodule(name).named_parameters(prefix=name):
                for now, then in stay:
                    tensor[now] = given[key][then]
    log.info("of its %d classes %d stay, %d are new", len(before), len(stay), len(plan.labels.classes) - len(stay))
    return network


def _load_body(network: nn.Module, given: dict[str, Any], plan: Plan, name: str) -> None:
    """Load all but the head."""
    heads = tuple(f"{name}." for name in head_of(network))
    wanted = {name: t for name, t in network.state_dict().items() if not name.startswith(heads)}
    body = {name: t for name, t in given.items() if not name.startswith(heads)}
    odd = sorted(wanted.keys() ^ body.keys()) or [n for n, t in wanted.items() if t.shape != body[n].shape]
    if odd:
        raise TrainingError(
            f"train.weights: {name} does not fit {plan.train.backbone}: {len(odd)} tensors differ, {odd[0]} is one; "
            "name the backbone that the file was made with"
        )
    network.load_state_dict(body, strict=False)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as e:
        raise TrainingError(f"train.weights: {path.name} is not a .safetensors file that can be read ({_first_line(e)})") from e


def _compare_normalisation(network: nn.Module, plan: Plan) -> None:
    """Say it when the view normalises otherwise than the weights are used to: it costs accuracy and is easily mended."""
    config: Any = network.pretrained_cfg
    trained = tuple(config["mean"]), tuple(config["std"])
    if trained != (plan.model_input.mean, plan.model_input.std):
        log.warning(
            "view: the weights were trained with mean %s and std %s, the plan has %s and %s; set view.mean and view.std to theirs",
            *map(list, (*trained, plan.model_input.mean, plan.model_input.std)),
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
