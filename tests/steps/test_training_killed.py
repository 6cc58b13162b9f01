"""A training that is killed again and again ends with the digest of an uninterrupted training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from animl_pipeline.config import Plan
from animl_pipeline.core import progress
from animl_pipeline.steps.training import CHECKPOINT_FILE, train_classifier
from animl_pipeline.storage.store import open_store
from tests.support.paths import ROOT
from tests.support.training_crops import STEPS_PER_EPOCH, crops_and_splits, plan_with, settings_at

pytestmark = pytest.mark.usefixtures("one_thread")

CHILD = """
import os, signal, torch
from pathlib import Path
from animl_pipeline.core import progress
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.store import open_store
from tests.support.training_crops import crops_and_splits, settings_at
from tests.steps.test_training_killed import plan_with_all_state
torch.set_num_threads(1)
progress.set_listener(lambda what, done, total: os.kill(os.getpid(), signal.SIGSTOP) if (what, done) == ("training steps", {stop_at}) else None)
settings = settings_at(Path({folder!r}))
store = open_store(settings)
train_classifier(*crops_and_splits(store), plan_with_all_state({epochs}), store, settings)
"""


def plan_with_all_state(epochs: int) -> Plan:
    """A plan with everything that has a state, and a checkpoint after every step.

    Augmentation, mixup, weighted sampling, averaged weights, steps of two batches, dropout and early stopping.
    """
    return plan_with(
        epochs=epochs, batch_size=4, accumulate_batches=2, augment="camera_trap", mixup=0.2, cutmix=1.0, ema=0.9, dropout=0.1,
        checkpoint_steps=1, patience=epochs,
    )  # fmt: skip


def train_and_kill(folder: Path, epochs: int, step: int, *, at_once: bool) -> None:
    """Start the training in a process of its own, which stops itself after a step. Kill it there, or after it has continued."""
    code = CHILD.format(folder=str(folder), epochs=epochs, stop_at=step)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"the training ended before it could be killed: {child.communicate()}"
    if not at_once:
        child.send_signal(signal.SIGCONT)
    child.kill()
    child.communicate()


def saved_steps(folder: Path) -> int:
    """The number of steps in the last checkpoint."""
    from animl_pipeline.steps.training.trainer import read_checkpoint

    found = next(iter((folder / "store" / "work").glob(f"training-*/scratch/{CHECKPOINT_FILE}")), None)
    checkpoint = read_checkpoint(found) if found else None
    return int(checkpoint["global_step"]) if checkpoint else 0


def check_same_digest_after_kills(tmp_path: Path, epochs: int, kills: int) -> None:
    """Train without interruption, and with kills spread over the training; both give the same digest."""
    uninterrupted = settings_at(tmp_path / "uninterrupted")
    store = open_store(uninterrupted)
    expected = train_classifier(*crops_and_splits(store), plan_with_all_state(epochs), store, uninterrupted)
    for number in range(kills):
        step = epochs * STEPS_PER_EPOCH * (number + 1) // (kills + 1) + 3
        train_and_kill(tmp_path / "killed", epochs, step, at_once=number % 2 == 0)
    saved = saved_steps(tmp_path / "killed")
    assert saved % STEPS_PER_EPOCH, "the last kill should be in the middle of an epoch"
    killed = settings_at(tmp_path / "killed")
    store = open_store(killed)
    steps: list[int] = []
    progress.set_listener(lambda what, done, total: steps.append(done) if what == "training steps" else None)
    try:
        resumed = train_classifier(*crops_and_splits(store), plan_with_all_state(epochs), store, killed)
    finally:
        progress.set_listener(None)
    assert steps[0] == saved
    assert resumed.digest == expected.digest


@pytest.mark.timeout(900)
def test_a_training_killed_mid_epoch_ends_with_the_digest_of_an_uninterrupted_one(tmp_path: Path) -> None:
    check_same_digest_after_kills(tmp_path, epochs=4, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_training_killed_ten_times_ends_with_the_digest_of_an_uninterrupted_one(tmp_path: Path) -> None:
    check_same_digest_after_kills(tmp_path, epochs=12, kills=10)
