"""The classifier of the recipe head: frozen networks and a linear layer in one network, so that one ONNX file holds all of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.integrations.frozen_networks import FrozenNetwork
from animl_pipeline.steps.training.linear_head import LinearHead
from animl_pipeline.steps.training.onnx_export import network_logits

MAX_DIFFERENCE = 0.01
"""The largest allowed difference of a probability between the network and the head on the stored embeddings."""


class HeadNetwork(nn.Module):
    """Logits [n, classes] of crops float32 [n, 3, size, size] that are normalised as the plan says.

    The normalisation is undone, and each frozen network normalises the crops in its own way.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, networks: Sequence[FrozenNetwork], head: LinearHead, model_input: ModelInput) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(model_input.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model_input.std).view(1, 3, 1, 1))
        self.networks = nn.ModuleList(networks)
        self.head = nn.Linear(head.weight.shape[1], head.weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(head.weight))
            self.head.bias.copy_(torch.from_numpy(head.bias))
        self.eval().requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = inputs * self.std + self.mean
        logits: Tensor = self.head(torch.cat([network(pixels) for network in self.networks], dim=1))
        return logits


def check_against_embeddings(network: HeadNetwork, crops: NDArray[np.uint8], model_input: ModelInput, expected: NDArray[np.float64]) -> float:
    """The largest difference of a probability between the network and the head on the stored embeddings.

    Args:
        network: the network.
        crops: uint8 [n, size, size, 3].
        model_input: how crops are normalised.
        expected: logits [n, classes] of the head on the stored embeddings of these crops.

    Raises:
        TrainingError: ``embeddings_difference``: it is above ``MAX_DIFFERENCE``.
    """
    found, wanted = (torch.from_numpy(logits).softmax(1) for logits in (network_logits(network, crops, model_input), expected))
    difference = float((found - wanted).abs().max())
    if difference > MAX_DIFFERENCE:
        raise TrainingError(
            f"the network and the head on the stored embeddings differ by {difference:.2g} in a probability, {MAX_DIFFERENCE:g} is allowed; the "
            "stored embeddings are not those of these networks; start with an empty store",
            code="embeddings_difference",
            max_abs=difference,
        )
    return difference
