"""One training run that a kill does not lose: Lightning's trainer, quiet, reproducible, with checkpoints that are whole."""

from __future__ import annotations

import io
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from animl_pipeline.config import TrainingConfig
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.core.progress import track
from animl_pipeline.steps.training.gpu_memory import kept_memory, out_of_memory
from animl_pipeline.steps.training.lightning_module import MONITORED, Learner
from animl_pipeline.steps.training.quiet import quieter
from animl_pipeline.storage.object_store import write_whole

log = logging.getLogger(__name__)

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
CHECKPOINT = "checkpoint.ckpt"
BF16_FROM_PIXELS = 160
"""On CPUs bf16 pays from here on: below, what it saves in products it loses in conversions (measured with lite0)."""
NOISE = (
    ".*LeafSpec.*is deprecated.*",  # Lightning with a newer torch; nothing that we could do
    ".*does not have many workers.*",  # crops are decoded once and mapped: there is little left for workers to do
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # TrainBatches finds its place by itself
    ".*GPU available but not used.*",
    ".*in eval mode at the start of training.*",  # averaged weights, and batch statistics that are to stay
    ".*No positive samples found in target.*",  # classes that val lacks are left out of the means
)


def fit(learner: Learner, train: DataLoader[Any], val: DataLoader[Any], precision: Precision, folder: Path, curves: Path) -> None:
    """Train to the end, from the checkpoint in ``folder`` where there is one; ``learner`` has the best weights and history then.

    ``curves`` is a folder for TensorBoard.

    Raises:
        TrainingError: the loss ran away, memory did not suffice, or training was stopped from outside.
        StoreError: the disk is full.
    """
    path = (folder / CHECKPOINT).resolve()  # it may be a link to where checkpoints outlive the machine
    saved = read_checkpoint(path)
    if saved is not None and saved["learner"]["finished"]:
        learner.on_load_checkpoint(saved)
        return
    total = learner.spec.epochs * learner.steps_per_epoch
    done = int(saved["global_step"]) if saved else 0
    if saved:
        log.info("training resumes after step %d of %d", done, total)
    with _quiet(), _reproducible(), kept_memory(), track("training steps", total, done) as step:
        drawn = TensorBoardLogger(curves.parent, curves.name, "", default_hp_metric=False, purge_step=done)
        trainer = _trainer(learner, precision, folder, _Checkpoints(path, learner.spec.checkpoint_steps, step), drawn)
        with _clear_ends(learner.spec):
            trainer.fit(learner, train, val, ckpt_path=path if saved else None, weights_only=True)
    if learner.spec.devices > 1 and (saved := read_checkpoint(path)) is not None:  # it was other processes that learnt
        learner.on_load_checkpoint(saved)
    if not learner.finished:
        raise TrainingError("training was stopped from outside before its end; run it again, it goes on from its last checkpoint")


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint that this room wrote, or None where there is none that can be read."""
    if not path.exists():
        return None
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as e:
        log.warning("the checkpoint %s cannot be read (%s); training starts anew", path.name, str(e).splitlines()[0])
        path.unlink()
        return None
    return checkpoint


def lightning_precision(spec: TrainingConfig, size: int) -> Precision:
    """Lightning's name of the arithmetic: the plan's, or what suits this machine and a view of ``size`` pixels."""
    if spec.precision == "16" and not torch.cuda.is_available():
        raise TrainingError("train.precision: 16 is for GPUs, and torch finds none here; set it to auto, bf16 or 32")
    if spec.precision != "auto":
        return {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}[spec.precision]  # type: ignore[return-value]  # these are names of it
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # torch tells it nowhere else
    return "bf16-mixed" if has_bf16 and size >= BF16_FROM_PIXELS else "32-true"


class _Checkpoints(pl.Callback):
    """Writes the run's state every so many steps and after every epoch, and moves the progress on."""

    def __init__(self, path: Path, every: int, step: Callable[[int], None]) -> None:
        self.path = path
        self.every = every
        self.step = step

    def __getstate__(self) -> dict[str, Any]:
        """For the process of another device, from where nobody sees how far it is."""
        return self.__dict__ | {"step": int}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.step(1)
        last = batch_idx + 1 == trainer.num_training_batches  # its epoch is saved below, val included
        if trainer.global_step % self.every == 0 and not last:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        row = pl_module.history[-1]
        log.info(
            "epoch %d of %d: loss %.3f, val loss %.3f, val macro AP %.3f, val macro F1 %.3f",
            row["epoch"], pl_module.spec.epochs, row["train_loss"], row["val_loss"], row["val_macro_ap"], row["val_macro_f1"],
        )  # fmt: skip
        pl_module.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        trainer.save_checkpoint(self.path)


class _WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints, each there whole or not at all: a kill while one is written leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())


def _trainer(learner: Learner, precision: Precision, folder: Path, checkpoints: _Checkpoints, curves: TensorBoardLogger) -> pl.Trainer:
    patience = learner.spec.patience
    stopping = [EarlyStopping(MONITORED, mode="max", patience=patience, check_on_train_epoch_end=False)] if patience else []
    return pl.Trainer(
        max_epochs=learner.spec.epochs,
        precision=precision,
        devices=learner.spec.devices,
        strategy="auto" if learner.spec.devices == 1 else DDPStrategy(start_method="spawn", find_unused_parameters=True),
        callbacks=[*stopping, checkpoints],
        plugins=[_WholeFiles()],
        default_root_dir=folder,
        logger=curves,
        log_every_n_steps=min(10, learner.steps_per_epoch),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


@contextmanager
def _clear_ends(spec: TrainingConfig) -> Iterator[None]:
    """Lightning's and torch's ways to end a run, as ours."""
    try:
        yield
    except SystemExit as e:
        if isinstance(e.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from e
        raise
    except Exception as e:
        if out_of_memory(e):
            raise _out_of_memory(spec) from e
        raise


def _out_of_memory(spec: TrainingConfig) -> TrainingError:
    half = max(1, spec.batch_size // 2)
    return TrainingError(
        f"memory did not suffice for batches of {spec.batch_size}; set train.batch_size to {half} and train.accumulate_batches to {2 * spec.accumulate_batches}"
        " (a step stays as large), or lower view.size"
    )


@contextmanager
def _reproducible() -> Iterator[None]:
    """The same arithmetic every time, as far as torch can; the process's own choice afterwards."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # filling what nothing reads before it is written takes a tenth of a step
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # torch makes it a property
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as above
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]  # as above


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its banners, and without warnings about what is meant."""
    with quieter("lightning.pytorch", "lightning.fabric"), warnings.catch_warnings():
        for message in NOISE:
            warnings.filterwarnings("ignore", message=message)
        yield
