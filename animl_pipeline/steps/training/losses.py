"""The training losses: cross entropy, class-balanced and focal, for class numbers or class shares (mixup)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from animl_pipeline.config import TrainingConfig


class ClassificationLoss(torch.nn.Module):
    """The plan's loss, as the mean over a batch.

    p is the softmax of the logits. t is the target: 1 for its class; with label smoothing ε, each class gets ε / classes. The loss
    of a crop is the sum over classes c of

    - cross_entropy: ``-t_c log p_c``
    - class_balanced: ``-w_c t_c log p_c`` with ``w_c`` proportional to ``(1 - β) / (1 - β^n_c)``, where n_c is the number of train
      crops of the class and the mean of the weights is 1 (Cui et al. 2019, Class-Balanced Loss Based on Effective Number of Samples)
    - focal: ``-(1 - p_c)^γ t_c log p_c`` (Lin et al. 2017, Focal Loss for Dense Object Detection, for several classes)
    """

    weights: Tensor | None

    def __init__(self, config: TrainingConfig, class_counts: NDArray[np.int64]) -> None:
        super().__init__()
        self.smoothing = config.label_smoothing
        self.gamma = config.focal_gamma if config.loss == "focal" else 0.0
        weights = class_balanced_weights(class_counts, config.class_balance_beta) if config.loss == "class_balanced" else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits [n, classes] against class numbers int64 [n] or class shares float32 [n, classes]."""
        logits = logits.float()
        if self.weights is None and not self.gamma:
            return functional.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        classes = logits.shape[1]
        shares = functional.one_hot(targets, classes).to(logits) if targets.ndim == 1 else targets.to(logits)
        shares = shares * (1 - self.smoothing) + self.smoothing / classes
        log_p = logits.log_softmax(1)
        if self.gamma:
            shares = shares * (1 - log_p.exp()).clamp(min=1e-6) ** self.gamma  # without the clamp the gradient is infinite for γ < 1
        if self.weights is not None:
            shares = shares * self.weights
        return -(shares * log_p).sum(1).mean()


def class_balanced_weights(class_counts: NDArray[np.int64], beta: float) -> Tensor:
    """Class weights by the effective number of crops, ``(1 - β) / (1 - β^n)``, scaled to a mean of 1 (Cui et al. 2019)."""
    effective = (1 - np.power(beta, class_counts.clip(1).astype(np.float64))) / (1 - beta)  # a class without crops has the weight of one crop
    weights = 1 / effective
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)
