"""Killed while it trains, again and again, it ends with the model of an uninterrupted training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from animl_pipeline.config import Plan
from animl_pipeline.core import progress
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.step_cache import open_store
from tests.support.blots import STEPS_PER_EPOCH, crops_and_splits, plan_with, settings_at
from tests.support.paths import ROOT

CHILD = """
import os, signal, torch
from pathlib import Path
from animl_pipeline import progress
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.step_cache import open_store
from tests.support.blots import crops_and_splits, settings_at
from tests.steps.test_training_killed import hard_plan
torch.set_num_threads(1)
progress.listen(lambda what, done, total: os.kill(os.getpid(), signal.SIGSTOP) if (what, done) == ("training steps", {stop_at}) else None)
settings = settings_at(Path({folder!r}))
store = open_store(settings)
train_classifier(*crops_and_splits(store), hard_plan({epochs}), store, settings)
"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from more threads, and the machine is shared."""
    import torch

    torch.set_num_threads(1)


def hard_plan(epochs: int) -> Plan:
    """With all that has a state: augmentation, mixup, sampling, averaged weights, steps of two batches, early stopping; a checkpoint every step."""
    return plan_with(
        epochs=epochs, batch_size=4, accumulate_batches=2, augment="camera_trap", mixup=0.2, cutmix=1.0, ema=0.9, dropout=0.1,
        checkpoint_steps=1, patience=epochs,
    )  # fmt: skip


def killed_at(folder: Path, epochs: int, step: int, *, at_once: bool) -> None:
    """Start the training in a process of its own, let it stop itself after a step, and kill it: there, or when it has just gone on."""
    code = CHILD.format(folder=str(folder), epochs=epochs, stop_at=step)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"the training ended before it could be killed: {child.communicate()}"
    if not at_once:
        child.send_signal(signal.SIGCONT)
    child.kill()
    child.communicate()


def steps_saved(folder: Path) -> int:
    from animl_pipeline.steps.training.trainer import read_checkpoint

    found = next(iter((folder / "store" / "work").glob("model-*/scratch/checkpoint.ckpt")), None)
    checkpoint = read_checkpoint(found) if found else None
    return int(checkpoint["global_step"]) if checkpoint else 0


def same_after_kills(tmp_path: Path, epochs: int, kills: int) -> None:
    """Train whole, and killed so often at places spread over the run; both must give the same digest."""
    whole = settings_at(tmp_path / "whole")
    store = open_store(whole)
    expected = train_classifier(*crops_and_splits(store), hard_plan(epochs), store, whole)
    for number in range(kills):
        killed_at(tmp_path / "killed", epochs, epochs * STEPS_PER_EPOCH * (number + 1) // (kills + 1) + 3, at_once=number % 2 == 0)
    saved = steps_saved(tmp_path / "killed")
    assert saved % STEPS_PER_EPOCH, "the last kill was to be within an epoch"
    killed = settings_at(tmp_path / "killed")
    store = open_store(killed)
    trained_on: list[int] = []
    progress.listen(lambda what, done, total: trained_on.append(done) if what == "training steps" else None)
    try:
        resumed = train_classifier(*crops_and_splits(store), hard_plan(epochs), store, killed)
    finally:
        progress.listen(None)
    assert trained_on[0] == saved
    assert resumed.digest == expected.digest


@pytest.mark.timeout(900)
def test_killed_mid_epoch_it_ends_with_the_digest_of_an_uninterrupted_run(tmp_path: Path) -> None:
    same_after_kills(tmp_path, epochs=4, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_ten_times_it_ends_with_the_digest_of_an_uninterrupted_run(tmp_path: Path) -> None:
    same_after_kills(tmp_path, epochs=12, kills=10)
