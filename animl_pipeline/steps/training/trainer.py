"""Run Lightning's trainer: reproducible, without its banners, and resumable from the last checkpoint after a kill."""

from __future__ import annotations

import ctypes
import io
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from animl_pipeline.config import TrainingConfig
from animl_pipeline.core.errors import TrainingError, TrainingInterruptedError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.progress import track
from animl_pipeline.steps.training.augmentation import augmentation_transform
from animl_pipeline.steps.training.dataloaders import CropsDataset, DecodedCrops, TrainBatchSampler, make_loader, sequential_batches
from animl_pipeline.steps.training.lightning_module import MONITORED_METRIC, ClassifierModule
from animl_pipeline.steps.training.network_and_weights import head_modules
from animl_pipeline.storage.atomic_files import write_atomic

log = logging.getLogger(__name__)

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Loaders = tuple[DataLoader[Any], DataLoader[Any]]
"""The train loader and the val loader."""
BF16_FROM_PIXELS = 160
"""On CPUs, bfloat16 is faster from this crop size on (measured with EfficientNet-Lite0). Below, conversions cost more than it saves."""
EXPECTED_WARNINGS = (
    ".*LeafSpec.*is deprecated.*",  # Lightning with a newer torch
    ".*does not have many workers.*",  # crops are decoded already, so workers have little to do
    ".*resuming from a checkpoint that ended before the epoch ended.*",  # TrainBatchSampler continues at the right batch
    ".*GPU available but not used.*",
    ".*in eval mode at the start of training.*",  # averaged weights, and batch-norm statistics that stay frozen
    ".*No positive samples found in target.*",  # classes that val lacks are left out of the means
)
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "bad allocation", "could not create a primitive")
"""Messages of torch's CPU allocator and of oneDNN when memory runs out. They have no exception class of their own."""


def train_network(
    network: nn.Module, train: DecodedCrops, val: DecodedCrops, config: TrainingConfig, model_input: ModelInput, checkpoint: Path, tensorboard: Path,
    *, keep_last: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Train the network, from the checkpoint if there is one. Afterwards it has the best epoch's weights, in eval mode on the CPU.

    Args:
        network: as ``network.build_network`` makes it.
        train: crops to train on.
        val: crops that choose the best epoch.
        config: the plan's section train.
        model_input: how crops are normalised.
        checkpoint: the file of the last checkpoint.
        tensorboard: the folder for TensorBoard's curves.
        keep_last: keep the last epoch's weights, so that val has no say.

    Returns:
        The rows of ``TRAINING_HISTORY``, one for each epoch.

    Raises:
        TrainingError: the loss is not finite, or memory runs out.
        TrainingInterruptedError: the training was stopped.
        StoreError: the disk is full.
    """
    weighted = config.sampling == "label_weighted"
    batches = TrainBatchSampler(train.targets, train.classes, config.batch_size, weighted=weighted, seed=config.seed)
    class_counts = np.bincount(train.targets, minlength=train.classes)
    module = ClassifierModule(
        network.to(memory_format=torch.channels_last), head_modules(network), config, len(batches), class_counts, keep_last=keep_last
    )
    batches.position = module.position
    loaders = (
        make_loader(CropsDataset(train, augmentation_transform(config, model_input.size)), batches, model_input, config.loader_workers),
        make_loader(CropsDataset(val, None), sequential_batches(len(val.targets), 2 * config.batch_size), model_input, 0),
    )
    precision = lightning_precision(config, model_input.size)
    counts = len(train.targets), len(val.targets)
    log.info("training %s on %d crops, %d val crops, %s, %d threads", config.backbone, *counts, precision, torch.get_num_threads())
    log.info("TensorBoard curves: %s", tensorboard)
    _fit(module, loaders, precision, checkpoint.resolve(), tensorboard)  # a SageMaker job links the file to a folder that outlives its instance
    network.load_state_dict(module.best)
    network.eval().cpu().requires_grad_(False)
    return pd.DataFrame(module.history).astype({"epoch": "int64"})


def _fit(module: ClassifierModule, loaders: Loaders, precision: Precision, checkpoint: Path, tensorboard: Path) -> None:
    """Train to the end. Afterwards ``module`` has the best weights and the history."""
    saved = read_checkpoint(checkpoint)
    if saved is not None and saved["training"]["finished"]:
        module.on_load_checkpoint(saved)
        return
    total = module.config.epochs * module.steps_per_epoch
    done = int(saved["global_step"]) if saved else 0
    if saved:
        log.info("training continues after step %d of %d", done, total)
    with _quiet_lightning(), _deterministic(), _keep_freed_memory(), _translate_errors(module.config), track("training steps", total, done) as step:
        curves = TensorBoardLogger(tensorboard.parent, tensorboard.name, "", default_hp_metric=False, purge_step=done)
        trainer = _make_trainer(module, precision, _SaveCheckpoints(checkpoint, module.config.checkpoint_steps, step), curves)
        trainer.fit(module, *loaders, ckpt_path=checkpoint if saved else None, weights_only=True)
    if module.config.devices > 1 and (saved := read_checkpoint(checkpoint)) is not None:  # other processes did the training
        module.on_load_checkpoint(saved)
    if not module.finished:
        raise TrainingInterruptedError("the training was stopped before its end; run it again, it continues from its last checkpoint")


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint of an earlier try; None if there is none. A checkpoint that cannot be read is removed."""
    if not path.exists():
        return None
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as e:
        log.warning("the checkpoint %s cannot be read (%s); training starts again", path.name, str(e).splitlines()[0])
        path.unlink()
        return None
    return checkpoint


def lightning_precision(config: TrainingConfig, size: int) -> Precision:
    """Lightning's name of the precision: the plan's, or the fastest one of this machine for crops of ``size`` pixels."""
    if config.precision == "16" and not torch.cuda.is_available():
        message = "train.precision: 16 needs a GPU, and torch finds none on this machine; set it to auto, bf16 or 32"
        raise TrainingError(message, code="no_gpu")
    if config.precision != "auto":
        return {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}[config.precision]  # type: ignore[return-value]  # these are its values
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # torch has no public function for it
    return "bf16-mixed" if has_bf16 and size >= BF16_FROM_PIXELS else "32-true"


class _SaveCheckpoints(pl.Callback):
    """Save a checkpoint every ``every`` steps and after each epoch's validation, log the epoch, and report progress.

    ModelCheckpoint would save by steps or by epochs, not both; by steps, also between an epoch's last step and its validation.
    """

    def __init__(self, path: Path, every: int, step: Callable[[int], None]) -> None:
        self.path = path
        self.every = every
        self.step = step

    def __getstate__(self) -> dict[str, Any]:
        """For the processes of several devices, whose progress is not shown."""
        return self.__dict__ | {"step": int}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = batch_idx + 1 == trainer.num_training_batches  # saved after validation
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not last:
            return
        self.step(1)
        if trainer.global_step % self.every == 0 and not last:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        row = pl_module.history[-1]
        log.info(
            "epoch %d of %d: loss %.3f, val loss %.3f, val macro AP %.3f, val macro F1 %.3f",
            row["epoch"], pl_module.config.epochs, row["train_loss"], row["val_loss"], row["val_macro_ap"], row["val_macro_f1"],
        )  # fmt: skip
        pl_module.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        trainer.save_checkpoint(self.path)


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically beside the old one. Lightning's own temporary file may be on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getvalue())


def _make_trainer(module: ClassifierModule, precision: Precision, checkpoints: _SaveCheckpoints, curves: TensorBoardLogger) -> pl.Trainer:
    config = module.config
    stopping = [EarlyStopping(MONITORED_METRIC, mode="max", patience=config.patience, check_on_train_epoch_end=False)] if config.patience else []
    return pl.Trainer(
        max_epochs=config.epochs,
        precision=precision,
        devices=config.devices,
        strategy="auto" if config.devices == 1 else DDPStrategy(start_method="spawn", find_unused_parameters=True),
        accumulate_grad_batches=config.accumulate_batches,
        callbacks=[*stopping, checkpoints],
        plugins=[_AtomicCheckpointIO()],
        default_root_dir=checkpoints.path.parent,
        logger=curves,
        log_every_n_steps=min(10, module.steps_per_epoch),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


@contextmanager
def _translate_errors(config: TrainingConfig) -> Iterator[None]:
    """Turn Lightning's exit into KeyboardInterrupt, and errors of missing memory into a TrainingError."""
    try:
        yield
    except SystemExit as e:
        if isinstance(e.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            raise KeyboardInterrupt from e
        raise
    except Exception as e:
        known = isinstance(e, MemoryError | torch.OutOfMemoryError)
        if known or (isinstance(e, RuntimeError) and any(text in str(e) for text in OUT_OF_MEMORY)):
            smaller = f"train.batch_size to {max(2, config.batch_size // 2)} and train.accumulate_batches to {2 * config.accumulate_batches}"
            message = f"not enough memory for batches of {config.batch_size}; set {smaller} (a step stays as large), or lower model_input.size"
            raise TrainingError(message, code="out_of_memory") from e
        raise


@contextmanager
def _deterministic() -> Iterator[None]:
    """Make torch use deterministic algorithms, and restore the process's choice afterwards."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Filling memory that nothing reads before it is written takes a tenth of a step.
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
def _keep_freed_memory() -> Iterator[None]:
    """Let glibc keep the memory of freed tensors while training.

    Otherwise each large tensor is a mapping of its own, which the kernel clears at every step: a third of a step's CPU time.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    trim_threshold, mmap_threshold, default = -1, -3, 128 * 1024  # parameters of mallopt(3), and glibc's default of both
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(mmap_threshold, default)
        libc.mallopt(trim_threshold, default)
        libc.malloc_trim(0)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Run Lightning without its banners and without warnings that are expected."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield
