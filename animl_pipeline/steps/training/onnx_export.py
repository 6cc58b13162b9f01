"""Export the trained network to ONNX with its card, and measure how far ONNX and torch disagree."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from animl_pipeline.config import Plan
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.frozen_record import Digest
from animl_pipeline.core.model_card import Agreement, ModelCard, ModelInput
from animl_pipeline.core.model_input import normalise_array
from animl_pipeline.inference.classifier import CARD_FILE, EMBEDDING, LOGITS, MODEL_FILE, Classifier, softmax
from animl_pipeline.steps.training.choose_initial_weights import WEIGHTS_FILE

log = logging.getLogger(__name__)

BATCH = 32
COMPARED_CROPS = 256
"""ONNX and torch are compared on at most this many crops."""


class NetworkDescription(NamedTuple):
    """What the card says of a network: its architecture, its initial weights, and whether it also learnt from val."""

    architecture: str
    weights: str
    out_of_fold: bool


def write_model(
    network: nn.Module, plan: Plan, recorded: Mapping[str, Any], described: NetworkDescription, data_digest: Digest, compared: NDArray[np.uint8],
    folder: Path,
) -> None:  # fmt: skip
    """Write weights.safetensors, model.onnx and card.json, and compare ONNX and torch.

    Args:
        network: the trained network.
        plan: the plan; ``recorded`` is what the card says of it.
        recorded: the card's ``plan``.
        described: what the card says of the network.
        data_digest: the digest of crops and splits.
        compared: the crops uint8 [n, size, size, 3] on which ONNX and torch are compared.
        folder: where the files are written.

    Raises:
        TrainingError: the architecture cannot be exported, or torch and ONNX disagree by more than the plan allows.
    """
    tensors = {name: t.contiguous() for name, t in network.state_dict().items()}
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))  # save_file hides that the disk is full
    sha256 = export_onnx(network, plan.model_input.size, folder / MODEL_FILE)
    card = ModelCard(
        model=plan.model, version=sha256[:12], architecture=described.architecture, classes=plan.classes(), model_input=plan.model_input,
        onnx_sha256=sha256, agreement=Agreement(max_abs=0, crops=0), data_digest=data_digest, weights=described.weights, plan=dict(recorded),
        out_of_fold=described.out_of_fold,
        nothing=plan.labels.nothing_id,
        other_animal=plan.labels.other_animal_id,
    )  # fmt: skip
    _write_card(card, folder)  # Classifier.load needs it
    found = compare_with_onnx(network, Classifier.load(folder), compared)
    allowed = plan.package.torch_onnx_tolerance
    if found.max_abs > allowed:
        keys = [key for key, used in (("networks", plan.train.needs_embeddings()), ("backbone", "fine_tune" in plan.train.recipes())) if used]
        message = (
            f"torch and ONNX differ by {found.max_abs:.2g} in a probability over {found.crops} crops, {allowed:g} is allowed"
            f" (package.torch_onnx_tolerance); change train.{' or train.'.join(keys)}, or raise the tolerance"
        )
        raise TrainingError(message, code="torch_onnx_difference", max_abs=found.max_abs)
    log.info("torch and ONNX agree within %.1e over %d crops", found.max_abs, found.crops)
    _write_card(card.model_copy(update={"agreement": found}), folder)


def export_onnx(network: nn.Module, size: int, path: Path) -> str:
    """Write the network as ONNX and return the file's sha256. The same weights give the same bytes.

    The model takes float32 ``input`` [n, 3, size, size] and gives ``logits`` [n, classes]. A second output ``embedding`` [n, width] holds the
    features before the last layer, unless that layer is not linear.

    Raises:
        TrainingError: the architecture cannot be exported.
    """
    example = torch.zeros(2, 3, size, size)
    for name in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own internals
            program: Any = torch.onnx.export(
                network.eval().cpu(), (example,), dynamo=True, input_names=["input"], output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as e:
        raise TrainingError(f"this architecture cannot be exported to ONNX ({str(e).splitlines()[0]}); choose another train.backbone") from e
    model = program.model_proto
    _remove_origins(model)
    _add_embedding_output(model.graph)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def compare_with_onnx(network: nn.Module, classifier: Classifier, crops: NDArray[np.uint8]) -> Agreement:
    """The largest difference of a probability between torch (eval, float32) and ONNX over crops uint8 [n, size, size, 3]."""
    network = network.eval().cpu().float()
    largest = 0.0
    for start in range(0, len(crops), BATCH):
        inputs = normalise_array(crops[start : start + BATCH], classifier.card.model_input)
        with torch.no_grad():
            logits = network(torch.from_numpy(inputs)).numpy()
        largest = max(largest, float(np.abs(softmax(logits) - classifier.probabilities(inputs)).max()))
    return Agreement(max_abs=largest, crops=len(crops))


def network_logits(network: nn.Module, crops: NDArray[np.uint8], model_input: ModelInput) -> NDArray[np.float64]:
    """Logits float64 [n, classes] of crops uint8 [n, size, size, 3] by a network on the CPU."""
    network = network.eval().cpu().float()
    parts = []
    with torch.no_grad():
        for start in range(0, len(crops), BATCH):
            parts.append(network(torch.from_numpy(normalise_array(crops[start : start + BATCH], model_input))).double().numpy())
    return np.concatenate(parts)


def _write_card(card: ModelCard, folder: Path) -> None:
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=1), encoding="utf-8")


def _remove_origins(model: onnx.ModelProto) -> None:
    """Remove the paths and lines of code that the exporter records; they differ between machines."""
    for part in _described_parts(model):
        for field in ("doc_string", "metadata_props"):
            if field in part.DESCRIPTOR.fields_by_name:
                part.ClearField(field)


def _add_embedding_output(graph: onnx.GraphProto) -> None:
    """Make what the last layer takes an output. It is computed anyway, so a request for logits alone costs nothing more."""
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[LOGITS]
    if last.op_type == "Add":  # the bias of a product
        last = next((makers[name] for name in last.input if name in makers and makers[name].op_type == "MatMul"), last)
    taken = last.input[0]
    known = next((v for v in graph.value_info if v.name == taken), None)
    if last.op_type not in {"Gemm", "MatMul"} or known is None or len(known.type.tensor_type.shape.dim) != 2:
        log.warning("the model has no output %s, because its last layer is no linear one (%s)", EMBEDDING, last.op_type)
        return
    for node in graph.node:
        node.input[:] = [EMBEDDING if name == taken else name for name in node.input]
        node.output[:] = [EMBEDDING if name == taken else name for name in node.output]
    output = graph.output.add()
    output.CopyFrom(known)
    output.name = EMBEDDING
    graph.value_info.remove(known)


def _described_parts(model: onnx.ModelProto) -> Iterable[Any]:
    graph = model.graph
    yield from (model, graph)
    for parts in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info, model.functions):
        yield from parts
    for function in model.functions:
        yield from function.node
