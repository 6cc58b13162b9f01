"""Weights → model.onnx, byte for byte the same for the same weights, and how far its answers are from torch's."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.imaging import normalise_array
from animl_pipeline.core.records import Agreement
from animl_pipeline.inference.classifier import Classifier, softmax
from animl_pipeline.steps.training.quiet import quieter

BATCH = 32


def export_onnx(network: nn.Module, size: int, path: Path) -> str:
    """Write the network as ONNX: float32 ``input`` [n, 3, size, size] → ``logits`` [n, classes]. Its sha256 comes back.

    Raises:
        TrainingError: the architecture cannot be exported.
    """
    example = torch.zeros(2, 3, size, size)
    try:
        with quieter("torch.onnx", "onnx_ir", "onnxscript", level=logging.ERROR), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's about its own insides
            program: Any = torch.onnx.export(
                network.eval().cpu(), (example,), dynamo=True, input_names=["input"], output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as e:
        raise TrainingError(f"this architecture cannot be exported to ONNX ({str(e).splitlines()[0]}); choose another train.backbone") from e
    model = program.model_proto
    _forget_origins(model)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def agreement(network: nn.Module, classifier: Classifier, views: NDArray[np.uint8]) -> Agreement:
    """The largest difference of a probability between torch (eval, float32) and the ONNX model over uint8 [n, size, size, 3]."""
    network = network.eval().cpu().float()
    largest = 0.0
    for start in range(0, len(views), BATCH):
        inputs = normalise_array(views[start : start + BATCH], classifier.card.model_input)
        with torch.no_grad():
            logits = network(torch.from_numpy(inputs)).numpy()
        largest = max(largest, float(np.abs(softmax(logits) - classifier.probabilities(inputs)).max()))
    return Agreement(max_abs=largest, crops=len(views))


def _forget_origins(model: onnx.ModelProto) -> None:
    """Leave out what says where and by which lines of code the graph was made: it differs from machine to machine."""
    for part in _described(model):
        for field in ("doc_string", "metadata_props"):
            if field in part.DESCRIPTOR.fields_by_name:
                part.ClearField(field)


def _described(model: onnx.ModelProto) -> Iterable[Any]:
    graph = model.graph
    yield from (model, graph)
    for parts in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info, model.functions):
        yield from parts
    for function in model.functions:
        yield from function.node
