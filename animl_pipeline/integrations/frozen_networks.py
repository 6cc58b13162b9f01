"""Pretrained networks that are never trained: each turns a crop into an embedding, a row of numbers.

The step embeddings runs them once over all crops. The step training puts the same networks into the classifier's ONNX graph. Each takes RGB
values in 0-1 and normalises them as it was trained. Weights of timm's hub are not compared with a sha256; all others are.
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from animl_pipeline.config.settings import Settings
from animl_pipeline.config.training import FrozenNetworkConfig
from animl_pipeline.core.errors import TrainingError, WeightsError, WeightsUnreachableError, redact_url
from animl_pipeline.integrations.convert_weights import name_tensors
from animl_pipeline.integrations.weights import NETWORKS_KEY, KnownWeights, fetch_weights, known_weights

VERSION = 1
"""Raised when the same crop and weights give another embedding."""
DETECTOR = "megadetector-lite"
YOLOX_DEPTH, YOLOX_WIDTH, YOLOX_STRIDE = 0.33, 0.375, 32
"""The size of MegaDetector Lite, a YOLOX-tiny. Its input is a multiple of the stride."""


class FrozenNetwork(nn.Module):
    """A network that gives embeddings float32 [n, width] of crops float32 [n, 3, size, size], RGB in 0-1. Always in eval mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body.eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        embeddings: Tensor = self.body((pixels - self.mean) / self.std)
        return embeddings


class PooledDetector(nn.Module):
    """The mean and the maximum of each of the three maps of a YOLOX body, side by side."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> Tensor:
        size = pixels.shape[-1]
        padding = -size % YOLOX_STRIDE
        maps = self.body(functional.pad(pixels, (0, padding, 0, padding)) if padding else pixels)
        return torch.cat([pooled for m in maps for pooled in (m.mean(dim=(2, 3)), m.amax(dim=(2, 3)))], dim=1)


def load_frozen_network(config: FrozenNetworkConfig, size: int, settings: Settings) -> FrozenNetwork:
    """The network with its weights.

    Raises:
        TrainingError: ``weights_do_not_fit``, or timm's hub has no weights for it.
        WeightsError: the weights are missing or are not the expected file.
        WeightsUnreachableError: the host of the weights does not answer now.
    """
    known = known_weights(config.network)
    if known is None:
        return _load_timm(config, size, settings)
    if known.file_of_user:
        return _load_published(known, config, size, settings)
    path = fetch_weights(config.network, settings, config.weights_sha256, key=NETWORKS_KEY)
    if config.network == DETECTOR:
        return FrozenNetwork(_load_detector(path), (0.0,) * 3, (1 / 255,) * 3)
    if known.mean is None or known.std is None or not known.backbone:
        raise TrainingError(f"train.networks: {config.network} is not a classifier's network; name another one", code="unknown_network")
    return FrozenNetwork(load_by_order(known.backbone, path), known.mean, known.std)


def load_by_order(backbone: str, path: Path) -> nn.Module:
    """A timm network without its classifier layer, from a file whose tensors have timm's order and shapes but other names.

    Raises:
        TrainingError: the tensors are not those of this network.
    """
    network: nn.Module = timm.create_model(backbone, num_classes=1000)
    given = torch.load(path, map_location="cpu", weights_only=True)
    wanted = network.state_dict()
    if [tuple(t.shape) for t in given.values()] != [tuple(t.shape) for t in wanted.values()]:
        raise TrainingError(
            f"train.networks: the tensors of {path.name} are not those of {backbone}; name another network", code="weights_do_not_fit"
        )
    network.load_state_dict(dict(zip(wanted, given.values(), strict=True)))
    network.reset_classifier(0)  # type: ignore[operator]  # every timm model has it
    return network


def _load_detector(path: Path) -> nn.Module:
    from yolox.models import YoloPafpn

    network = PooledDetector(YoloPafpn(YOLOX_DEPTH, YOLOX_WIDTH))
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)["model"]
        network.body.load_state_dict({n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")})
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as e:
        raise WeightsError(f"{path.name} is not a checkpoint of MegaDetector Lite ({_first_line(e)}); remove it from the cache") from e
    return network


def _load_timm(config: FrozenNetworkConfig, size: int, settings: Settings) -> FrozenNetwork:
    """Any timm network: weights of its hub, of a .safetensors file, or (for trials) random ones that are the same everywhere."""
    known: Any = timm.get_pretrained_cfg(config.network)
    options: dict[str, Any] = {"num_classes": 0} | ({"img_size": size} if known is not None and known.fixed_input_size else {})
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    try:
        network: nn.Module = timm.create_model(config.network, pretrained=config.weights == "timm", **options)
    except (OSError, RuntimeError, ValueError) as e:  # raised here by urllib, requests, huggingface_hub and timm
        message = f"train.networks: timm's weights of {config.network} cannot be loaded ({_first_line(e)}); check the network, or name another one"
        error = WeightsUnreachableError if isinstance(e, OSError) else TrainingError
        raise error(message, code="no_hub_weights") from e
    if config.weights == "none":
        _draw_weights(network)
    elif config.weights != "timm":
        _load_safetensors(network, config, settings)
    normalisation: Any = network.pretrained_cfg
    return FrozenNetwork(network, tuple(normalisation["mean"]), tuple(normalisation["std"]))


def _load_published(known: KnownWeights, config: FrozenNetworkConfig, size: int, settings: Settings) -> FrozenNetwork:
    """A known network from the .safetensors file that the plan names."""
    tensors = _read_safetensors(config, settings)
    options: dict[str, Any] = {"img_size": size} if "vit" in known.backbone else {}
    network: nn.Module = timm.create_model(known.backbone, num_classes=0, **options)
    network.load_state_dict(name_tensors(tensors, network))
    return FrozenNetwork(network, known.mean or (0.0,) * 3, known.std or (1.0,) * 3)


def _draw_weights(network: nn.Module) -> None:
    """Give every layer random weights that are the same at each call. Several threads may load networks, so torch's own seed is of no use."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)


def _load_safetensors(network: nn.Module, config: FrozenNetworkConfig, settings: Settings) -> None:
    """Load the body's tensors; those of a classifier layer in the file are left out."""
    tensors = _read_safetensors(config, settings)
    wanted = network.state_dict()
    different = sorted(n for n, t in wanted.items() if n not in tensors or tensors[n].shape != t.shape)
    if different:
        message = (
            f"train.networks: {redact_url(config.weights)} does not fit {config.network}: {len(different)} tensors differ, such as {different[0]}"
        )
        raise TrainingError(message, code="weights_do_not_fit")
    network.load_state_dict({n: tensors[n] for n in wanted})


def _read_safetensors(config: FrozenNetworkConfig, settings: Settings) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = fetch_weights(config.weights, settings, config.weights_sha256, key=NETWORKS_KEY)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        message = f"train.networks: {path.name} is not a readable .safetensors file ({_first_line(e)})"
        raise TrainingError(message, code="unreadable_weights") from e


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
