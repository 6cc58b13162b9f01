"""What is learnt, step by step: first the head alone, then everything; the best epoch's weights on val are kept.

All that a resumed run needs and Lightning does not keep (scores so far, best weights, the running loss) travels in the
checkpoint.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # timm re-exports without saying so
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_average_precision, multiclass_f1_score

from animl_pipeline.errors import TrainingError
from animl_pipeline.model.loading import mixed_seed
from animl_pipeline.plan import TrainPlan

MONITORED = "val_macro_ap"
LAST_LR = 0.01
"""The share of the plan's lr that the cosine ends at."""
WARM_UP = 0.1
"""The share of full training in which the rate rises, an epoch at most."""
DROPOUT_SLOT = 2**32 - 1
"""The slot of a step's own seed (dropout, drop path); crops have the slots from 0."""


class Scores(NamedTuple):
    """How a model does on val; macro means are over the classes that val holds."""

    loss: float
    macro_ap: float
    macro_f1: float


class Learner(pl.LightningModule):
    """A network under training.

    ``history`` has a row an epoch, ``best`` the weights of the epoch with the highest macro average precision on val, of
    equals the one with the lower loss there.
    """

    def __init__(self, network: nn.Module, heads: tuple[str, ...], spec: TrainPlan, steps_per_epoch: int) -> None:
        super().__init__()
        self.network = network
        self.heads = heads
        self.spec = spec
        self.steps_per_epoch = steps_per_epoch
        # Without pretrained weights there is nothing worth freezing.
        self.head_steps = 0 if spec.weights == "none" else min(spec.head_epochs, spec.epochs) * steps_per_epoch
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_rank = (-math.inf, -math.inf)
        self.finished = False
        self._loss_sum, self._seen = 0.0, 0
        self._head_only: bool | None = None
        self._answers: list[tuple[Tensor, Tensor]] = []

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._enter_phase(head_only=self.global_step < self.head_steps)
        _seed_torch(mixed_seed(self.spec.seed, self.global_step, DROPOUT_SLOT))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The smoothed cross entropy of a batch.

        Raises:
            TrainingError: it is no number any more.
        """
        inputs, targets = batch
        loss = functional.cross_entropy(self.network(inputs), targets, label_smoothing=self.spec.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} in epoch {self.current_epoch + 1}, step {self.global_step + 1}; lower train.lr (now {self.spec.lr:g})"
            )
        self._loss_sum += value * len(targets)
        self._seen += len(targets)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW (norms and biases do not decay), and the rate of :func:`rate_at` at every step."""
        self._enter_phase(head_only=False)  # so that no parameter is left out
        optimiser = torch.optim.AdamW(param_groups_weight_decay(self.network, self.spec.weight_decay), lr=self.spec.lr)
        total = self.spec.epochs * self.steps_per_epoch
        rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, self.head_steps, total, self.steps_per_epoch))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    # -- val ---------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        inputs, targets = batch
        self._answers.append((self.network(inputs).float().cpu(), targets.cpu()))

    def on_validation_epoch_end(self) -> None:
        scores = score(*(torch.cat(part) for part in zip(*self._answers, strict=True)))
        self._answers.clear()
        self.log(MONITORED, scores.macro_ap, logger=False)
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "train_loss": self._loss_sum / max(1, self._seen),
                "val_loss": scores.loss,
                "val_macro_ap": scores.macro_ap,
                "val_macro_f1": scores.macro_f1,
                "lr": self.spec.lr * rate_at(self.global_step - 1, self.head_steps, self.spec.epochs * self.steps_per_epoch, self.steps_per_epoch),
            }
        )
        self._loss_sum, self._seen = 0.0, 0
        rank = (scores.macro_ap, -scores.loss)
        if rank > self.best_rank:
            self.best_rank = rank
            self.best = {name: t.detach().cpu().clone() for name, t in self.network.state_dict().items()}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["learner"] = {
            "history": self.history, "best": self.best, "best_rank": self.best_rank, "finished": self.finished,
            "loss_sum": self._loss_sum, "seen": self._seen,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["learner"]
        self.history, self.best, self.best_rank = saved["history"], saved["best"], saved["best_rank"]
        self.finished, self._loss_sum, self._seen = saved["finished"], saved["loss_sum"], saved["seen"]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _enter_phase(self, *, head_only: bool) -> None:
        """Freeze all but the head, its batch statistics too, or thaw everything."""
        if head_only == self._head_only:
            return
        self._head_only = head_only
        self.network.requires_grad_(not head_only).train(not head_only)
        for name in self.heads:
            self.network.get_submodule(name).requires_grad_(True).train()


def _seed_torch(seed: int) -> None:
    """As ``torch.manual_seed``, which without a GPU keeps a list of its calls, for ever, and is slow at it."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # untyped in torch
        torch.cuda.manual_seed_all(seed)


def rate_at(step: int, head_steps: int, total: int, steps_per_epoch: int) -> float:
    """The share of the plan's lr at a step: 1 for the head alone, then a linear warm-up and a cosine down to ``LAST_LR``."""
    if step < head_steps:
        return 1.0
    length = max(1, total - head_steps)
    warm_up = max(1, min(steps_per_epoch, int(length * WARM_UP)))
    done = step - head_steps
    if done < warm_up:
        return (done + 1) / warm_up
    share = min(1.0, (done - warm_up) / max(1, length - warm_up))
    return LAST_LR + (1 - LAST_LR) * 0.5 * (1 + math.cos(math.pi * share))


def score(logits: Tensor, targets: Tensor) -> Scores:
    """The scores of logits float32 [n, classes] against class numbers int64 [n]."""
    classes = logits.shape[1]
    held = torch.bincount(targets, minlength=classes) > 0
    precision = multiclass_average_precision(logits.softmax(1), targets, classes, average="none")
    f1 = multiclass_f1_score(logits, targets, classes, average="none")
    return Scores(float(functional.cross_entropy(logits, targets)), float(precision[held].mean()), float(f1[held].mean()))
