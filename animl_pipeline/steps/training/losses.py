"""What is minimised: cross entropy, class-balanced or focal, on class numbers or on shares of classes (mixup)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from animl_pipeline.config import TrainingConfig


class Loss(torch.nn.Module):
    """The plan's loss as a mean over a batch.

    With p the softmax of the logits and t the target's shares (1 for its class; ε / classes from each class where labels are
    smoothed by ε), a crop's loss is the sum over classes c of

    - cross_entropy: ``-t_c log p_c``
    - class_balanced: ``-w_c t_c log p_c`` with ``w_c`` proportional to ``(1 - β) / (1 - β^n_c)``, n the class's crops to train on, the
      weights' mean over classes 1 (Cui et al. 2019, Class-Balanced Loss Based on Effective Number of Samples)
    - focal: ``-(1 - p_c)^γ t_c log p_c`` (Lin et al. 2017, Focal Loss for Dense Object Detection, for several classes)
    """

    weights: Tensor | None

    def __init__(self, spec: TrainingConfig, counts: NDArray[np.int64]) -> None:
        super().__init__()
        self.smoothing = spec.label_smoothing
        self.focus = spec.focus if spec.loss == "focal" else 0.0
        weights = balanced_weights(counts, spec.balance) if spec.loss == "class_balanced" else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits [n, classes] against int64 [n] or shares float32 [n, classes]."""
        logits = logits.float()
        if self.weights is None and not self.focus:
            return functional.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        classes = logits.shape[1]
        shares = functional.one_hot(targets, classes).to(logits) if targets.ndim == 1 else targets.to(logits)
        shares = shares * (1 - self.smoothing) + self.smoothing / classes
        surprise = logits.log_softmax(1)
        if self.focus:
            shares = shares * (1 - surprise.exp()).clamp(min=1e-6) ** self.focus  # a slope at 0 would be no number for γ < 1
        if self.weights is not None:
            shares = shares * self.weights
        return -(shares * surprise).sum(1).mean()


def balanced_weights(counts: NDArray[np.int64], beta: float) -> Tensor:
    """The weight of each class by the effective number of its crops, ``(1 - β^n) / (1 - β)``; their mean is 1 (Cui et al. 2019)."""
    effective = (1 - np.power(beta, counts.astype(np.float64))) / (1 - beta)
    weights = 1 / effective
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)
