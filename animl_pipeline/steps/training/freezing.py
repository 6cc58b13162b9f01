"""Which weights learn, when, and how fast: the head alone, then all but the layers that stay as they are."""

from __future__ import annotations

import math
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from animl_pipeline.config import TrainingConfig
from animl_pipeline.core.errors import TrainingError

LAST_LR = 0.01
"""The share of the plan's lr that the cosine ends at."""
WARM_UP = 0.1
"""The share of full training in which the rate rises, an epoch at most."""


class Phases:
    """A network's two phases: ``heads`` name the modules that classify, ``steps`` is how long they learn alone."""

    def __init__(self, network: nn.Module, heads: tuple[str, ...], spec: TrainingConfig, steps_per_epoch: int) -> None:
        self.network = network
        self.spec = spec
        # Without pretrained weights there is nothing worth freezing.
        self.steps = 0 if spec.weights == "none" else min(spec.head_epochs, spec.epochs) * steps_per_epoch
        self.heads = [network.get_submodule(name) for name in heads]
        self.frozen = frozen_names(network, heads, spec)
        self._now: bool | None = None

    def enter(self, *, head_only: bool) -> None:
        """Freeze all but the head, its batch statistics too, or thaw what is to learn."""
        if head_only == self._now:
            return
        self._now = head_only
        self.network.requires_grad_(not head_only).train(not head_only)
        for head in self.heads:
            head.requires_grad_(True).train()
        for name, parameter in self.network.named_parameters():
            if name in self.frozen:
                parameter.requires_grad_(False)
        self._rest_statistics()

    def _rest_statistics(self) -> None:
        """Batch statistics stay as they are where the plan says so, and in layers that do not learn."""
        for module in self.network.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, _NormBase) and (self.spec.freeze_norm or (own and not any(p.requires_grad for p in own))):
                module.eval()


def frozen_names(network: nn.Module, heads: tuple[str, ...], spec: TrainingConfig) -> frozenset[str]:
    """The parameters of the first ``frozen_layers`` of the backbone, as timm counts its layers.

    Raises:
        TrainingError: timm does not know the architecture's layers.
    """
    if not spec.frozen_layers:
        return frozenset()
    if not hasattr(network, "group_matcher"):
        raise TrainingError(f"train.frozen_layers: {spec.backbone} does not tell its layers; set it to 0, or use head_epochs")
    layers: dict[int, list[str]] = group_parameters(network, network.group_matcher(coarse=False))  # type: ignore[operator]
    prefixes = tuple(f"{head}." for head in heads)
    body = [names for _, layer in sorted(layers.items()) if (names := [n for n in layer if not n.startswith(prefixes)])]
    return frozenset(name for names in body[: round(spec.frozen_layers * len(body))] for name in names)


def groups(network: nn.Module, heads: tuple[str, ...], spec: TrainingConfig) -> list[dict[str, Any]]:
    """The parameters for an optimiser: head and backbone each with their rate; norms and biases do not decay."""
    prefixes = tuple(f"{head}." for head in heads)
    parts: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        parts.setdefault((name.startswith(prefixes), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": those, "lr": spec.lr * (1.0 if head else spec.backbone_lr), "weight_decay": spec.weight_decay if decays else 0.0}
        for (head, decays), those in sorted(parts.items(), key=lambda part: part[0])
    ]


def rate_at(step: int, head_steps: int, total: int, steps_per_epoch: int) -> float:
    """The share of the plan's lr at a step: 1 for the head alone, then a linear warm-up and a cosine down to ``LAST_LR``."""
    if step < head_steps:
        return 1.0
    length = max(1, total - head_steps)
    warm_up = max(1, min(steps_per_epoch, int(length * WARM_UP)))
    done = step - head_steps
    if done < warm_up:
        return (done + 1) / warm_up
    share = min(1.0, (done - warm_up) / max(1, length - warm_up))
    return LAST_LR + (1 - LAST_LR) * 0.5 * (1 + math.cos(math.pi * share))
