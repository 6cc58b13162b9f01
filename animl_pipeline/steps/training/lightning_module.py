"""What is learnt, step by step: first the head alone, then the rest; the best epoch's weights on val are kept.

All that a resumed run needs and Lightning does not keep (scores so far, best weights, the running loss) travels in the
checkpoint.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]  # timm re-exports without saying so
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_average_precision, multiclass_f1_score

from animl_pipeline.config import TrainingConfig
from animl_pipeline.core.errors import TrainingError
from animl_pipeline.steps.training.augmentation import mix, mixed
from animl_pipeline.steps.training.dataloaders import mixed_seed
from animl_pipeline.steps.training.depthwise_bfloat16 import FastDepthwise
from animl_pipeline.steps.training.freezing import Phases, groups, rate_at
from animl_pipeline.steps.training.gpu_memory import can_be_smaller, give_back, parts, restore_statistics, statistics
from animl_pipeline.steps.training.losses import Loss

log = logging.getLogger(__name__)

MONITORED = "val_macro_ap"
OWN_SLOT = 2**32 - 1
"""The slots of a step's own seeds count down from here: mixup, then dropout and drop path of each part; crops have the slots from 0."""


class Scores(NamedTuple):
    """How a model does on val; macro means are over the classes that val holds."""

    loss: float
    macro_ap: float
    macro_f1: float


class Learner(pl.LightningModule):
    """A network under training.

    A step is one batch of the loader, learnt from in parts of at most ``part_size`` crops whose gradients add up; where memory
    does not suffice, that is halved. ``history`` has a row an epoch, ``best`` the weights of the epoch with the highest macro
    average precision on val, of equals the one with the lower loss there; with ``ema`` both are those of the averaged weights.

    Args:
        network: the backbone with its head.
        heads: the names of the modules that classify.
        spec: how to train.
        steps_per_epoch: the loader's batches.
        counts: crops to train on of each class.
    """

    def __init__(self, network: nn.Module, heads: tuple[str, ...], spec: TrainingConfig, steps_per_epoch: int, counts: NDArray[np.int64]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.heads = heads
        self.spec = spec
        self.steps_per_epoch = steps_per_epoch
        self.phases = Phases(network, heads, spec, steps_per_epoch)
        self.loss = Loss(spec, counts)
        self.mixed = mixed(spec, len(counts))
        self.part_size = spec.batch_size
        self.average: ModelEmaV3 | None = None
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_rank = (-math.inf, -math.inf)
        self.finished = False
        self._loss_sum, self._seen = 0.0, 0
        self._answers: list[tuple[Tensor, Tensor]] = []

    def setup(self, stage: str) -> None:
        """Lightning's, before a checkpoint is loaded: the average is a part of what is loaded."""
        if self.spec.ema is not None and self.average is None:
            self.average = ModelEmaV3(self.network, decay=self.spec.ema, use_warmup=True)

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.phases.enter(head_only=self.global_step < self.phases.steps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One step of the optimiser.

        Raises:
            TrainingError: the loss is no number any more.
        """
        step, crops = self.global_step, len(batch[1])
        _seed_torch(mixed_seed(self.spec.seed, step, OWN_SLOT))
        inputs, targets = mix(self.mixed, *batch)
        loss = self._gradients(inputs, targets, step)
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} in epoch {self.current_epoch + 1}, step {step + 1}; lower train.lr (now {self.spec.lr:g})")
        self.optimizers().step()  # type: ignore[union-attr]  # there is one
        self.lr_schedulers().step()  # type: ignore[union-attr]  # there is one
        if self.average is not None:
            self.average.update(self.network, step=step + 1)
        self._loss_sum += loss * crops
        self._seen += crops
        self.log("train/loss", loss)

    def configure_optimizers(self) -> Any:
        """AdamW (norms and biases do not decay; the backbone at its own rate), and the rate of ``rate_at`` at every step."""
        self.phases.enter(head_only=False)  # so that no parameter is left out
        optimiser = torch.optim.AdamW(groups(self.network, self.heads, self.spec), lr=self.spec.lr)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimiser, self.rate), "interval": "step"}}

    def rate(self, step: int) -> float:
        """The share of the plan's rates at a step."""
        return rate_at(step, self.phases.steps, self.spec.epochs * self.steps_per_epoch, self.steps_per_epoch)

    # -- val ---------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        network = self.network if self.average is None else self.average.module
        for part in parts(len(batch[1]), self.part_size):
            self._answers.append((network(batch[0][part]).float().cpu(), batch[1][part].cpu()))

    def on_validation_epoch_end(self) -> None:
        scores = score(*(torch.cat(part) for part in zip(*self._answers, strict=True)))
        self._answers.clear()
        row = {
            "epoch": self.current_epoch + 1,
            "train_loss": self._loss_sum / max(1, self._seen),
            "val_loss": scores.loss,
            "val_macro_ap": scores.macro_ap,
            "val_macro_f1": scores.macro_f1,
            "lr": self.spec.lr * self.rate(self.global_step - 1),
            "part_size": self.part_size,
        }
        self.log(MONITORED, scores.macro_ap, logger=False)
        self.log_dict({f"val/{name.removeprefix('val_')}": value for name, value in row.items() if name.startswith("val_")})
        self.log("train/lr", row["lr"])
        self.history.append(row)
        self._loss_sum, self._seen = 0.0, 0
        rank = (scores.macro_ap, -scores.loss)
        if rank > self.best_rank:
            self.best_rank = rank
            network = self.network if self.average is None else self.average.module
            self.best = {name: t.detach().cpu().clone() for name, t in network.state_dict().items()}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["learner"] = {
            "history": self.history, "best": self.best, "best_rank": self.best_rank, "finished": self.finished,
            "loss_sum": self._loss_sum, "seen": self._seen, "part_size": self.part_size,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["learner"]
        self.history, self.best, self.best_rank = saved["history"], saved["best"], saved["best_rank"]
        self.finished, self._loss_sum, self._seen = saved["finished"], saved["loss_sum"], saved["seen"]
        self.part_size = saved["part_size"]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _gradients(self, inputs: Tensor, targets: Tensor, step: int) -> float:
        """Leave the gradients of a batch's mean loss, which comes back; in smaller parts from now on where memory does not suffice."""
        before = statistics(self.network)
        while True:
            try:
                return self._in_parts(inputs, targets, step)
            except Exception as e:
                if not can_be_smaller(e) or self.part_size < 4 or self.trainer.world_size > 1:
                    raise
                said = str(e).splitlines()[0]
            self._halve(said, len(targets))
            restore_statistics(self.network, before)

    def _in_parts(self, inputs: Tensor, targets: Tensor, step: int) -> float:
        self.optimizers().zero_grad()  # type: ignore[union-attr]  # there is one
        mine = slice(self.trainer.global_rank, None, self.trainer.world_size)  # of a batch that several devices share
        inputs, targets = inputs[mine], targets[mine]
        total = 0.0
        for number, part in enumerate(parts(len(targets), self.part_size)):
            _seed_torch(mixed_seed(self.spec.seed, step, OWN_SLOT - 1 - number))
            with FastDepthwise():
                logits = self.network(inputs[part])
            loss = self.loss(logits, targets[part]) * ((part.stop - part.start) / len(targets))
            self.manual_backward(loss)
            total += float(loss.detach())
        return total

    def _halve(self, said: str, crops: int) -> None:
        self.optimizers().zero_grad()  # type: ignore[union-attr]  # there is one
        give_back()
        old, self.part_size = min(self.part_size, crops), min(self.part_size, crops) // 2
        log.warning(
            "out of memory with %d crops at a time (%s): from here on %d at a time, their gradients added up, so a step stays %d crops;"
            " set train.batch_size and train.accumulate_batches so to begin with",
            old, said, self.part_size, crops,
        )  # fmt: skip


def _seed_torch(seed: int) -> None:
    """As ``torch.manual_seed``, which without a GPU keeps a list of its calls, for ever, and is slow at it."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # untyped in torch
        torch.cuda.manual_seed_all(seed)


def score(logits: Tensor, targets: Tensor) -> Scores:
    """The scores of logits float32 [n, classes] against class numbers int64 [n]."""
    classes = logits.shape[1]
    held = torch.bincount(targets, minlength=classes) > 0
    precision = multiclass_average_precision(logits.softmax(1), targets, classes, average="none")
    f1 = multiclass_f1_score(logits, targets, classes, average="none")
    return Scores(float(functional.cross_entropy(logits, targets)), float(precision[held].mean()), float(f1[held].mean()))
