"""Train by the plan's recipes: let val or folds of locations choose, train the chosen one, and write the step's files."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import TrainingConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import CURVES_FILE, Counts
from animl_pipeline.core.errors import DamagedError, TrainingError
from animl_pipeline.core.table_schemas import CROSS_VALIDATION, EMBEDDED_CROPS, OUT_OF_FOLD, TRAINED_IMAGES, TRAINING_HISTORY
from animl_pipeline.core.tables import write_table
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.integrations.frozen_networks import load_frozen_network
from animl_pipeline.steps.training.choose_initial_weights import InitialWeights
from animl_pipeline.steps.training.choose_recipe import Candidate, choose, scores
from animl_pipeline.steps.training.dataloaders import DecodedCrops, decode_split
from animl_pipeline.steps.training.head_network import HeadNetwork, check_against_embeddings
from animl_pipeline.steps.training.linear_head import REGULARISATIONS, fit_heads, out_of_fold_logits
from animl_pipeline.steps.training.location_folds import NEVER_HELD_OUT, assign_folds
from animl_pipeline.steps.training.network_and_weights import build_from_released, build_network
from animl_pipeline.steps.training.onnx_export import COMPARED_CROPS, NetworkDescription, network_logits, write_model
from animl_pipeline.steps.training.plot_learning_curves import plot_cross_validation, plot_training_curves
from animl_pipeline.steps.training.step import CHECKPOINT_FILE, TrainingInputs, recorded_plan
from animl_pipeline.steps.training.trained_images import list_trained_images
from animl_pipeline.steps.training.trainer import train_network
from animl_pipeline.storage.manifest import digest_of
from animl_pipeline.storage.store import StepOutput, Store, Workspace

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

CHECKED_CROPS = 32
"""The network and the head on the stored embeddings are compared on at most this many crops."""


class _Run(NamedTuple):
    """One training.

    Attributes:
        rows: the crops of train and val, by crop_id.
        targets: their class numbers int64 [n].
        fold: the fold of each, -1 for those that no fold leaves out; without folds, val is fold 0.
        by_folds: whether the model learns from val, too.
    """

    space: Workspace
    inputs: TrainingInputs
    rows: pd.DataFrame
    targets: NDArray[np.int64]
    fold: NDArray[np.int64]
    by_folds: bool
    initial: InitialWeights
    store: Store
    settings: Settings

    @property
    def classes(self) -> tuple[str, ...]:
        return self.inputs.plan.labels.class_ids()

    def decode(self, name: str, rows: pd.DataFrame) -> DecodedCrops:
        """Decode crops into a file of the scratch folder."""
        size = self.inputs.plan.model_input.size
        return decode_split(rows, self.classes, self.store, size, self.space.scratch / f"{name}.crops", self.settings.workers)


class _Trained(NamedTuple):
    """A trained network, ready to be exported."""

    network: nn.Module
    described: NetworkDescription
    history: pd.DataFrame
    curves: bytes
    compared: NDArray[np.uint8]


def train_by_plan(
    space: Workspace, inputs: TrainingInputs, rows: pd.DataFrame, initial: InitialWeights, store: Store, settings: Settings, *, by_folds: bool
) -> StepOutput:
    """Train and write all files of the step training; arguments and errors as for ``train_classifier``.

    Args:
        space: the step's workspace.
        inputs: the artifacts and the plan.
        rows: the crops of train and val, by crop_id.
        initial: the initial weights of a fine-tuning.
        store: holds the crops.
        settings: where relative paths of weights start, and the number of threads that decode crops.
        by_folds: whether folds of locations choose, and the model learns from val, too.
    """
    train, plan = inputs.plan.train, inputs.plan
    targets = np.array([plan.labels.class_ids().index(c) for c in rows["class_id"]], np.int64)
    if by_folds:
        fold = assign_folds(rows, plan.splits.train_only, train.folds, train.seed)
    else:
        fold = np.where(rows["split"] == "val", 0, NEVER_HELD_OUT).astype(np.int64)
    run = _Run(space, inputs, rows, targets, fold, by_folds, initial, store, settings)
    if not by_folds and train.recipes() == ("fine_tune",):
        return _write(run, _fine_tune_with_val(run), recorded_plan(plan))
    blocks = _read_embeddings(run) if train.needs_embeddings() else []
    candidates = list(_candidates(run, blocks))
    chosen, table = choose(candidates, targets)
    best = table[table["chosen"]].iloc[0]
    log.info(
        "%s: of %d ways to train, %s has the lowest log loss %.3f at locations that it did not learn from (macro AP %.3f, macro F1 %.3f)",
        "cross-validation" if by_folds else "validation", len(table), _name(chosen), best["log_loss"], best["macro_ap"], best["macro_f1"],
    )  # fmt: skip
    write_table(space.out, CROSS_VALIDATION, table)
    if by_folds:
        write_table(space.out, OUT_OF_FOLD, _out_of_fold(run, chosen))
    trained = _final_head(run, chosen, table, blocks) if chosen.recipe == "head" else _final_fine_tuning(run)
    selected = {"selected": {"recipe": chosen.recipe} | ({"regularisation": chosen.regularisation} if chosen.recipe == "head" else {})}
    return _write(run, trained, recorded_plan(plan) | selected)


def _write(run: _Run, trained: _Trained, recorded: dict[str, Any]) -> StepOutput:
    inputs, out = run.inputs, run.space.out
    write_model(
        trained.network, inputs.plan, recorded, trained.described, digest_of([inputs.crops.digest, inputs.splits.digest]), trained.compared, out
    )
    write_table(out, TRAINING_HISTORY, trained.history)
    earlier = run.initial.networks_learnt_by if isinstance(trained.network, HeadNetwork) else run.initial.learnt_by
    write_table(out, TRAINED_IMAGES, list_trained_images(run.rows, earlier, run.store))
    (out / CURVES_FILE).write_bytes(trained.curves)
    val = int((run.rows["split"] == "val").sum())
    notes = {"out_of_fold": int((run.fold != NEVER_HELD_OUT).sum())} if run.by_folds else {"val_crops": val}
    if not isinstance(trained.network, HeadNetwork):
        notes["epochs"] = len(trained.history)
    return StepOutput(Counts(kept=len(run.rows) - (0 if run.by_folds else val), unit="crops", notes=notes))


def _candidates(run: _Run, blocks: list[NDArray[np.float32]]) -> Iterable[Candidate]:
    """Every way to train that the plan gives, with the answers of models that did not learn from the crops' folds."""
    if blocks:
        for regularisation, logits in zip(REGULARISATIONS, out_of_fold_logits(blocks, run.targets, len(run.classes), run.fold), strict=True):
            yield Candidate("head", regularisation, logits)
    if "fine_tune" in run.inputs.plan.train.recipes():
        yield Candidate("fine_tune", float("nan"), _fine_tune_folds(run))


def _out_of_fold(run: _Run, chosen: Candidate) -> pd.DataFrame:
    """The rows of ``OUT_OF_FOLD``."""
    table = run.rows[["crop_id"]].assign(fold=run.fold)
    probabilities = chosen.probabilities()
    for number, class_id in enumerate(run.classes):
        table[probability_column(class_id)] = probabilities[:, number]
    answered: pd.DataFrame = table[run.fold != NEVER_HELD_OUT].reset_index(drop=True)
    return answered


# -- head --------------------------------------------------------------------------------------------------------------


def _read_embeddings(run: _Run) -> list[NDArray[np.float32]]:
    """The embeddings of the rows by each network, float32 [n, width].

    Raises:
        TrainingError: ``no_embeddings``: there is no such artifact.
        DamagedError: a crop has none.
    """
    embeddings, store = run.inputs.embeddings, run.store
    if embeddings is None:
        raise TrainingError("the recipe head learns from embeddings, found none; run the step embeddings before", code="no_embeddings")
    position = pd.Index(store.table(embeddings, EMBEDDED_CROPS)["crop_id"]).get_indexer(pd.Index(run.rows["crop_id"]))
    if (position < 0).any():
        raise DamagedError(f"{int((position < 0).sum()):,} crops have no embedding; run the step embeddings of this plan's crops and splits")
    return [np.load(store.path(embeddings, f"{i}.npy"))[position] for i in range(len(run.inputs.plan.train.networks))]


def _final_head(run: _Run, chosen: Candidate, table: pd.DataFrame, blocks: list[NDArray[np.float32]]) -> _Trained:
    """The head, learnt from all crops or from those of train."""
    plan = run.inputs.plan
    learnt = np.full(len(run.rows), True) if run.by_folds else run.fold == NEVER_HELD_OUT
    (head,) = fit_heads(blocks, run.targets, len(run.classes), learnt, [chosen.regularisation])
    logits = head.logits(np.concatenate(blocks, axis=1).astype(np.float64))
    networks = [load_frozen_network(n, plan.model_input.size, run.settings) for n in plan.train.networks]
    network = HeadNetwork(networks, head, plan.model_input)
    compared = _first_of_val(run.rows)
    crops = run.decode("compared", run.rows.iloc[compared]).pixels
    checked = slice(CHECKED_CROPS)
    difference = check_against_embeddings(network, crops[checked], plan.model_input, logits[compared][checked])
    log.info("network and head agree within %.1e over %d crops", difference, len(crops[checked]))
    best = table[table["chosen"]].iloc[0]
    train_loss = scores(Candidate("head", 0.0, logits[learnt]).probabilities(), run.targets[learnt])[0]
    row = {"epoch": 1, "train_loss": train_loss, "val_loss": best["log_loss"], "val_macro_ap": best["macro_ap"], "val_macro_f1": best["macro_f1"]}
    names = " + ".join(n.network for n in plan.train.networks)
    described = NetworkDescription(f"linear head on {names}", names, run.by_folds)
    return _Trained(network, described, pd.DataFrame([row | {"lr": 0.0}]), plot_cross_validation(table), crops)


def _first_of_val(rows: pd.DataFrame) -> NDArray[np.int64]:
    """Positions of the crops on which networks are compared: those of val first."""
    return np.argsort(rows["split"].to_numpy() != "val", kind="stable")[:COMPARED_CROPS]


# -- fine-tuning -------------------------------------------------------------------------------------------------------


def _fine_tune_with_val(run: _Run) -> _Trained:
    """Learn from train; val chooses the epoch."""
    train, val = (run.decode(name, run.rows[run.rows["split"] == name]) for name in ("train", "val"))
    network = _build(run)
    history = train_network(network, train, val, run.initial.config, run.inputs.plan.model_input, run.space.scratch / CHECKPOINT_FILE, _curves(run))
    return _tuned(run, network, history, train, val)


def _fine_tune_folds(run: _Run) -> NDArray[np.float64]:
    """Logits [n, classes] of each fold's crops by a network that was trained on the others; NaN for crops of no fold.

    The last epoch counts, so the fold has no say. The released model is no start here, because it may know the fold's locations.
    """
    plan, config = run.inputs.plan, _without_stopping(run.initial.config.without_released_weights())
    logits = np.full((len(run.rows), len(run.classes)), np.nan)
    numbers = _fold_numbers(run)
    for number in numbers:
        held_out = run.fold == number
        log.info("fine-tuning: fold %d of %d, %d crops held out", numbers.index(number) + 1, len(numbers), int(held_out.sum()))
        files = [run.space.scratch / f"fold-{number}-{name}.crops" for name in ("train", "held-out")]
        train, val = (run.decode(file.stem, run.rows[chosen]) for file, chosen in zip(files, (~held_out, held_out), strict=True))
        network = build_network(config, run.classes, plan.model_input, run.settings)
        # A SageMaker job links the last checkpoint to a folder that outlives its instance; those of the folds belong there, too.
        checkpoint = (run.space.scratch / CHECKPOINT_FILE).resolve().with_name(f"fold-{number}.ckpt")
        history = train_network(network, train, val, config, plan.model_input, checkpoint, _curves(run) / f"fold-{number}", keep_last=True)
        history.to_parquet(run.space.scratch / f"fold-{number}.parquet")
        logits[held_out] = network_logits(network, val.pixels, plan.model_input)
        del train, val
        for file in files:
            file.unlink()
    return logits


def _fold_numbers(run: _Run) -> list[int]:
    """The folds that have crops. One is empty if its only location must always be learnt from, because a class has no other."""
    return [int(number) for number in np.unique(run.fold[run.fold != NEVER_HELD_OUT])]


def _final_fine_tuning(run: _Run) -> _Trained:
    """Learn from all crops of train and val. The history has the folds' mean scores, because no crop is left to judge by."""
    run = run._replace(initial=run.initial._replace(config=_without_stopping(run.initial.config)))
    watched = run.rows[run.rows["split"] == "val"] if (run.rows["split"] == "val").any() else run.rows
    train, val = run.decode("train", run.rows), run.decode("val", watched)
    network = _build(run)
    history = train_network(
        network, train, val, run.initial.config, run.inputs.plan.model_input, run.space.scratch / CHECKPOINT_FILE, _curves(run), keep_last=True
    )
    folds = pd.concat([pd.read_parquet(run.space.scratch / f"fold-{number}.parquet") for number in _fold_numbers(run)])
    by_epoch = folds.groupby("epoch").mean()
    for column in ("val_loss", "val_macro_ap", "val_macro_f1"):
        history[column] = by_epoch[column].to_numpy()
    return _tuned(run, network, history, train, val)


def _build(run: _Run) -> nn.Module:
    """The network with its initial weights."""
    initial, model_input = run.initial, run.inputs.plan.model_input
    if initial.model is None:
        return build_network(initial.config, run.classes, model_input, run.settings)
    return build_from_released(initial.config, run.classes, model_input, initial.model, run.store)


def _tuned(run: _Run, network: nn.Module, history: pd.DataFrame, train: DecodedCrops, val: DecodedCrops) -> _Trained:
    compared = np.concatenate([val.pixels[:COMPARED_CROPS], train.pixels[: max(0, COMPARED_CROPS - len(val.pixels))]])
    described = NetworkDescription(run.inputs.plan.train.backbone, run.initial.description, run.by_folds)
    return _Trained(network, described, history, plot_training_curves(history), compared)


def _without_stopping(config: TrainingConfig) -> TrainingConfig:
    """The section train without early stopping, which would need crops to judge by."""
    return config.model_copy(update={"patience": None})


def _curves(run: _Run) -> Path:
    """The folder of TensorBoard's curves."""
    return run.store.local / "tensorboard" / run.inputs.plan.model / run.space.scratch.parent.name


def _name(candidate: Candidate) -> str:
    return f"a head with C {candidate.regularisation:g}" if candidate.recipe == "head" else "fine-tuning"
