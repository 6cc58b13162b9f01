"""Which layers are trained when, and at which learning rate: first only the classifier layer, then all layers that are not frozen."""

from __future__ import annotations

import math
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from animl_pipeline.config import TrainingConfig
from animl_pipeline.core.errors import TrainingError

FINAL_LR = 0.01
"""The cosine schedule ends at this share of the plan's lr."""
WARM_UP = 0.1
"""The learning rate rises in this share of the steps after the head phase, at most one epoch."""


class FreezingSchedule:
    """Freezes and unfreezes the layers of a network.

    Attributes:
        head_steps: number of optimiser steps in which only the classifier layers are trained.
    """

    def __init__(self, network: nn.Module, heads: tuple[str, ...], config: TrainingConfig, steps_per_epoch: int) -> None:
        self.network = network
        self.config = config
        # Without pretrained weights there is nothing to protect from the untrained classifier layer.
        self.head_steps = 0 if config.weights == "none" else min(config.head_epochs, config.epochs) * steps_per_epoch
        self.heads = [network.get_submodule(name) for name in heads]
        self.frozen = frozen_parameter_names(network, heads, config)
        self._head_only: bool | None = None

    def apply(self, *, head_only: bool) -> None:
        """Freeze everything except the classifier layers, or only the layers that stay frozen. Batch-norm statistics follow."""
        if head_only == self._head_only:
            return
        self._head_only = head_only
        self.network.requires_grad_(not head_only).train(not head_only)
        for head in self.heads:
            head.requires_grad_(True).train()
        for name, parameter in self.network.named_parameters():
            if name in self.frozen:
                parameter.requires_grad_(False)
        for module in self.network.modules():
            parameters = list(module.parameters(recurse=False))
            untrained = bool(parameters) and not any(p.requires_grad for p in parameters)
            if isinstance(module, _NormBase) and (self.config.freeze_norm or untrained):
                module.eval()


def frozen_parameter_names(network: nn.Module, heads: tuple[str, ...], config: TrainingConfig) -> frozenset[str]:
    """Names of the parameters in the first ``frozen_layers`` of the backbone. timm says what a layer is.

    Raises:
        TrainingError: timm does not know the layers of this architecture.
    """
    if not config.frozen_layers:
        return frozenset()
    if not hasattr(network, "group_matcher"):
        raise TrainingError(f"train.frozen_layers: timm does not know the layers of {config.backbone}; set it to 0, or use head_epochs")
    layers: dict[int, list[str]] = group_parameters(network, network.group_matcher(coarse=False))  # type: ignore[operator]
    prefixes = tuple(f"{head}." for head in heads)
    body = [names for _, layer in sorted(layers.items()) if (names := [n for n in layer if not n.startswith(prefixes)])]
    return frozenset(name for names in body[: round(config.frozen_layers * len(body))] for name in names)


def parameter_groups(network: nn.Module, heads: tuple[str, ...], config: TrainingConfig) -> list[dict[str, Any]]:
    """Parameter groups for the optimiser: head and backbone have their own learning rate; norms and biases have no weight decay."""
    prefixes = tuple(f"{head}." for head in heads)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault((name.startswith(prefixes), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": groups[key], "lr": config.lr * (1.0 if head else config.backbone_lr), "weight_decay": config.weight_decay if decays else 0.0}
        for key in sorted(groups)
        for head, decays in [key]
    ]


def learning_rate_factor(step: int, head_steps: int, total_steps: int, steps_per_epoch: int) -> float:
    """The factor on the plan's lr: 1 in the head phase, then a linear warm-up and a cosine down to ``FINAL_LR``."""
    if step < head_steps:
        return 1.0
    length = max(1, total_steps - head_steps)
    warm_up = max(1, min(steps_per_epoch, int(length * WARM_UP)))
    done = step - head_steps
    if done < warm_up:
        return (done + 1) / warm_up
    progress = min(1.0, (done - warm_up) / max(1, length - warm_up))
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * progress))
