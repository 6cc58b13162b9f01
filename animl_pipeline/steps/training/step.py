"""The step itself: read crops and split, train, keep the best epoch, export it and compare."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.records import Agreement, Artifact, Counts, Digest, ModelCard
from animl_pipeline.core.table_schemas import TRAINING_HISTORY
from animl_pipeline.core.tables import write_table
from animl_pipeline.inference.classifier import CARD_FILE, MODEL_FILE, Classifier
from animl_pipeline.steps.training.augmentation import altered
from animl_pipeline.steps.training.dataloaders import Crops, PlainBatches, TrainBatches, decode_crops, loader
from animl_pipeline.steps.training.initial_weights import WEIGHTS_FILE, Start
from animl_pipeline.steps.training.lightning_module import Learner
from animl_pipeline.steps.training.network import build_network, continued, head_of
from animl_pipeline.steps.training.onnx_export import agreement, export_onnx
from animl_pipeline.steps.training.plots import CURVES_FILE, curves_png
from animl_pipeline.steps.training.trainer import fit, lightning_precision
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace, digest_of

log = logging.getLogger(__name__)

COMPARED = 256
"""At most so many real crops are answered by torch and by ONNX."""


class Side(NamedTuple):
    """One split: its crops as uint8 [n, size, size, 3] and their class numbers int64 [n]."""

    views: NDArray[np.uint8]
    targets: NDArray[np.int64]


def build_model(
    space: Workspace, crops: Artifact, splits: Artifact, start: Start, store: Store, settings: Settings, recorded: dict[str, Any]
) -> StepOutput:
    """Write the step's files and count what it learnt from; see :func:`animl_pipeline.steps.training.train_classifier`."""
    plan = start.plan
    table = store.table(crops, "crops.parquet").merge(store.table(splits, "splits.parquet"), on="crop_id", validate="one_to_one")
    tables = {name: table[table["split"] == name].sort_values("crop_id") for name in ("train", "val")}
    check_trainable(tables, plan)
    train, val = (_decoded(tables[name], name, plan, store, settings, space.scratch) for name in ("train", "val"))
    network = build_network(plan, settings) if start.model is None else continued(plan, start.model, store)
    history = _learn(network, train, val, plan, space.scratch, store.local / "tensorboard" / plan.model / space.scratch.parent.name)
    _write_model(network, start, digest_of([crops.digest, splits.digest]), recorded, space.out, _compared(train, val))
    write_table(space.out, TRAINING_HISTORY, history)
    (space.out / CURVES_FILE).write_bytes(curves_png(history))
    noted = {"val_crops": len(val.targets), "epochs": len(history)}
    if (least := int(history["part_size"].min())) < plan.train.batch_size:
        noted["crops_at_once_for_want_of_memory"] = least
    return StepOutput(Counts(kept=len(train.targets), unit="crops", noted=noted))


def check_trainable(tables: dict[str, pd.DataFrame], plan: Plan) -> None:
    """Every class has something to train on, and there is something to validate with.

    Raises:
        TrainingError: else; the message names the classes.
    """
    classes = tuple(plan.labels.classes)
    strange = sorted(set(pd.concat(tables.values())["class_id"]) - set(classes))
    if strange:
        raise TrainingError(
            f"expected crops of {', '.join(classes)}, found {', '.join(strange)} among them; run the steps 'labels' to 'splits' of this plan"
        )
    lacking = [c for c in classes if not (tables["train"]["class_id"] == c).any()]
    if lacking:
        raise TrainingError(f"no crop to train on for {', '.join(lacking)}; label more of it at more places, or take it out of labels.classes")
    if tables["val"].empty:
        raise TrainingError("no crop to validate with (split 'val'); raise splits.val, or add labels from more places")


def _decoded(table: pd.DataFrame, name: str, plan: Plan, store: Store, settings: Settings, scratch: Path) -> Side:
    views = decode_crops(table, store, plan.model_input.size, scratch / f"{name}.views", settings.workers)
    number = {c: i for i, c in enumerate(plan.labels.classes)}
    return Side(views, np.array([number[class_id] for class_id in table["class_id"]], np.int64))


def _learn(network: nn.Module, train: Side, val: Side, plan: Plan, scratch: Path, curves: Path) -> pd.DataFrame:
    """Train; the network holds the best epoch's weights then, in eval mode on the CPU. A row an epoch comes back."""
    spec = plan.train
    weighted = spec.sampling == "label_weighted"
    classes = len(plan.labels.classes)
    drawn = TrainBatches(train.targets, classes, spec.batch_size * spec.accumulate_batches, weighted=weighted, seed=spec.seed)
    counts = np.bincount(train.targets, minlength=classes)
    learner = Learner(network.to(memory_format=torch.channels_last), head_of(network), spec, len(drawn), counts)
    drawn.steps_done = partial(getattr, learner, "global_step")  # a process of another device cannot be sent a lambda
    loaders = (
        loader(Crops(*train, altered(spec, plan.model_input.size)), drawn, plan.model_input, spec.loader_workers),
        loader(Crops(*val, None), PlainBatches(len(val.targets), 2 * spec.batch_size), plan.model_input, 0),
    )
    precision = lightning_precision(spec, plan.model_input.size)
    log.info(
        "training %s on %d crops, %d to validate, %s, %d threads",
        spec.backbone,
        len(train.targets),
        len(val.targets),
        precision,
        torch.get_num_threads(),
    )
    log.info("curves for TensorBoard: %s", curves)
    fit(learner, *loaders, precision, scratch, curves)
    network.load_state_dict(learner.best)
    network.eval().cpu().requires_grad_(False)
    return pd.DataFrame(learner.history).astype({"epoch": "int64", "part_size": "int64"})


def _compared(train: Side, val: Side) -> NDArray[np.uint8]:
    """The crops that torch and ONNX both answer: of val, filled up with train."""
    return np.concatenate([val.views[:COMPARED], train.views[: max(0, COMPARED - len(val.views))]])


def _write_model(network: nn.Module, start: Start, data: Digest, recorded: dict[str, Any], out: Path, views: NDArray[np.uint8]) -> None:
    """Write weights, ONNX and card.

    Raises:
        TrainingError: torch and ONNX differ by more than the plan allows.
    """
    plan = start.plan
    weights = {name: t.contiguous() for name, t in network.state_dict().items()}
    (out / WEIGHTS_FILE).write_bytes(save(weights, metadata={"format": "pt"}))  # its own file errors say nothing of a full disk
    sha256 = export_onnx(network, plan.model_input.size, out / MODEL_FILE)
    card = ModelCard(
        model=plan.model, version=sha256[:12], architecture=plan.train.backbone, classes=plan.classes(), model_input=plan.model_input, onnx_sha256=sha256,
        agreement=Agreement(max_abs=0, crops=0), data_digest=data, weights=start.told, plan=recorded,
    )  # fmt: skip
    _write_card(card, out)
    found = agreement(network, Classifier.load(out), views)
    if found.max_abs > plan.package.torch_onnx_tolerance:
        raise TrainingError(
            f"torch and ONNX differ by {found.max_abs:.2g} in a probability over {found.crops} crops, allowed is"
            f" {plan.package.torch_onnx_tolerance:g} (package.torch_onnx_tolerance); choose another train.backbone or allow more"
        )
    log.info("torch and ONNX agree within %.1e over %d crops", found.max_abs, found.crops)
    _write_card(card.model_copy(update={"agreement": found}), out)


def _write_card(card: ModelCard, out: Path) -> None:
    (out / CARD_FILE).write_text(card.model_dump_json(indent=1), encoding="utf-8")
