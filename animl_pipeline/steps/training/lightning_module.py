"""The Lightning module: training and validation steps, the optimiser, and the weights of the best epoch."""

from __future__ import annotations

import math
from typing import Any

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
from animl_pipeline.steps.training.augmentation import mix_batch, mixing_transform
from animl_pipeline.steps.training.dataloaders import derive_seed
from animl_pipeline.steps.training.depthwise_bfloat16 import Float32DepthwiseGradients
from animl_pipeline.steps.training.fine_tuning_schedule import FreezingSchedule, learning_rate_factor, parameter_groups
from animl_pipeline.steps.training.losses import ClassificationLoss

MONITORED_METRIC = "val_macro_ap"
STEP_SLOT = 2**32 - 1
"""The slot of the seed for mixup and dropout of a batch. The crops of a batch have the slots from 0."""


class ClassifierModule(pl.LightningModule):
    """A network in training.

    ``history`` has a row for each epoch. ``best`` has the weights of the epoch with the highest macro average precision on val;
    of equal epochs, the one with the lower val loss; or of the last epoch with ``keep_last``.
    With ``ema``, validation and ``best`` use the averaged weights.

    Args:
        network: the backbone with its classifier layer.
        heads: names of the classifier layers.
        config: the plan's section train.
        batches_per_epoch: batches of the train loader.
        class_counts: the number of train crops of each class.
        keep_last: keep the last epoch, and not the one that is best on val.
    """

    def __init__(
        self, network: nn.Module, heads: tuple[str, ...], config: TrainingConfig, batches_per_epoch: int, class_counts: NDArray[np.int64],
        *, keep_last: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.heads = heads
        self.config = config
        self.keep_last = keep_last
        self.batches_per_epoch = batches_per_epoch
        self.steps_per_epoch = math.ceil(batches_per_epoch / config.accumulate_batches)
        self.freezing = FreezingSchedule(network, heads, config, self.steps_per_epoch)
        self.loss = ClassificationLoss(config, class_counts)
        self.mixing = mixing_transform(config, len(class_counts))
        self.average: ModelEmaV3 | None = None
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_rank = (-math.inf, -math.inf)
        self.finished = False
        self._train_loss = (0.0, 0)  # sum of the losses of the crops of this epoch, and their number
        self._val_outputs: list[tuple[Tensor, Tensor]] = []

    def setup(self, stage: str) -> None:
        """Create the averaged weights before Lightning loads a checkpoint, which holds them."""
        if self.config.ema is not None and self.average is None:
            self.average = ModelEmaV3(self.network, decay=self.config.ema, use_warmup=True)

    def position(self) -> tuple[int, int]:
        """The current epoch, and the number of its batches that are done."""
        epoch, step = divmod(self.global_step, self.steps_per_epoch)
        return epoch, step * self.config.accumulate_batches

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.freezing.apply(head_only=self.global_step < self.freezing.head_steps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean loss of a batch.

        Raises:
            TrainingError: ``loss_not_finite``.
        """
        crops = len(batch[1])
        _seed_torch(derive_seed(self.config.seed, self.current_epoch * self.batches_per_epoch + batch_idx, STEP_SLOT))
        inputs, targets = mix_batch(self.mixing, *batch)
        share = slice(self.trainer.global_rank, None, self.trainer.world_size)  # several devices share each batch
        with Float32DepthwiseGradients():
            logits = self.network(inputs[share])
        loss: Tensor = self.loss(logits, targets[share])
        value = float(loss.detach())
        if not math.isfinite(value):
            message = f"the loss is {value} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}; lower train.lr (now {self.config.lr:g})"
            raise TrainingError(message, code="loss_not_finite")
        self._train_loss = (self._train_loss[0] + value * crops, self._train_loss[1] + crops)
        self.log("train/loss", value)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.network, step=self.global_step + 1)

    def configure_optimizers(self) -> Any:
        """AdamW with the parameter groups of ``freezing``; the learning rate changes at every step."""
        self.freezing.apply(head_only=False)  # the optimiser needs all parameters
        optimiser = torch.optim.AdamW(parameter_groups(self.network, self.heads, self.config), lr=self.config.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.learning_rate_factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def learning_rate_factor(self, step: int) -> float:
        """The factor on the plan's learning rates at an optimiser step."""
        return learning_rate_factor(step, self.freezing.head_steps, self.config.epochs * self.steps_per_epoch, self.steps_per_epoch)

    # -- validation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._val_outputs.append((self._evaluated_network()(batch[0]).float().cpu(), batch[1].cpu()))

    def on_validation_epoch_end(self) -> None:
        scores = score_logits(*(torch.cat(parts) for parts in zip(*self._val_outputs, strict=True)))
        self._val_outputs.clear()
        row = {
            "epoch": self.current_epoch + 1,
            "train_loss": self._train_loss[0] / max(1, self._train_loss[1]),
            **scores,
            "lr": self.config.lr * self.learning_rate_factor(self.global_step - 1),
        }
        self.log(MONITORED_METRIC, scores["val_macro_ap"], logger=False)
        self.log_dict({name.replace("val_", "val/"): value for name, value in scores.items()} | {"train/lr": row["lr"]})
        self.history.append(row)
        self._train_loss = (0.0, 0)
        rank = (scores["val_macro_ap"], -scores["val_loss"])
        if self.keep_last or rank > self.best_rank:
            self.best_rank = rank
            self.best = {name: t.detach().cpu().clone() for name, t in self._evaluated_network().state_dict().items()}

    def _evaluated_network(self) -> nn.Module:
        return self.network if self.average is None else self.average.module

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not keep."""
        checkpoint["training"] = {
            "history": self.history, "best": self.best, "best_rank": self.best_rank, "finished": self.finished, "train_loss": self._train_loss,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["training"]
        self.history, self.best, self.best_rank = saved["history"], saved["best"], saved["best_rank"]
        self.finished, self._train_loss = saved["finished"], saved["train_loss"]


def _seed_torch(seed: int) -> None:
    """Seed torch. ``torch.manual_seed`` is slow without a GPU, since it keeps a list of its calls."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # untyped in torch
        torch.cuda.manual_seed_all(seed)


def score_logits(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """The val scores of logits float32 [n, classes] against class numbers int64 [n]. Macro means are over the classes that val has."""
    classes = logits.shape[1]
    present = torch.bincount(targets, minlength=classes) > 0
    precision = multiclass_average_precision(logits.softmax(1), targets, classes, average="none")
    f1 = multiclass_f1_score(logits, targets, classes, average="none")
    loss = functional.cross_entropy(logits, targets)
    return {"val_loss": float(loss), "val_macro_ap": float(precision[present].mean()), "val_macro_f1": float(f1[present].mean())}
