"""The training recipe: losses, alterations, phases and rates, averaged weights, steps of several batches, and too little memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PlanError, TrainingError
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.step_cache import Store
from tests.support.blots import crops_and_splits, drawn_crop, plan_with
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from more threads, and the machine is shared."""
    import torch

    torch.set_num_threads(1)


# -- losses --------------------------------------------------------------------------------------------------------------


def loss_of(counts: list[int], **train: Any) -> Any:
    from animl_pipeline.steps.training.losses import Loss

    return Loss(plan_with(sampling="natural", **train).train, np.array(counts))


def test_a_rare_class_weighs_more_by_its_effective_number_of_crops() -> None:
    from animl_pipeline.steps.training.losses import balanced_weights

    weights = balanced_weights(np.array([1000, 10, 1]), 0.99).tolist()
    effective = [(1 - 0.99**n) / 0.01 for n in (1000, 10, 1)]
    assert [w * e for w, e in zip(weights, effective, strict=True)] == pytest.approx([weights[2]] * 3)
    assert sum(weights) == pytest.approx(3)
    assert balanced_weights(np.array([7, 300]), 0.0).tolist() == [1, 1]  # β 0: every class alike


def test_focal_loss_is_the_papers_and_without_focus_the_cross_entropy() -> None:
    import torch

    logits, targets = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]]), torch.tensor([0, 1])
    p = logits.softmax(1)[[0, 1], targets]
    focal = loss_of([1, 1, 1], loss="focal", focus=2.0, label_smoothing=0.0)
    assert float(focal(logits, targets)) == pytest.approx(float((-((1 - p) ** 2) * p.log()).mean()), rel=1e-5)
    plain = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    assert float(loss_of([1, 1, 1], loss="focal", focus=0.0, label_smoothing=0.1)(logits, targets)) == pytest.approx(float(plain), rel=1e-5)
    assert float(loss_of([5, 5, 5], loss="class_balanced", label_smoothing=0.1)(logits, targets)) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "class_balanced", "focal"])
def test_a_sure_answer_has_a_loss_and_a_slope_that_are_numbers_also_for_mixed_classes(loss: str) -> None:
    import torch

    logits = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    found = loss_of([3, 2, 1], loss=loss, focus=0.5, label_smoothing=0.0)(logits, torch.tensor([[1.0, 0, 0], [0.3, 0.7, 0.0]]))
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_rare_classes_are_not_made_up_for_twice() -> None:
    with pytest.raises(PlanError, match=r"class_balanced and sampling: label_weighted both make up for rare classes"):
        plan_with(loss="class_balanced")


# -- alterations ---------------------------------------------------------------------------------------------------------


def altered_crop(seed: int, *ways: str, strength: float = 1.0) -> Any:
    import io

    import torch
    from PIL import Image

    from animl_pipeline.steps.training.augmentation import altered

    crop = torch.from_numpy(np.array(Image.open(io.BytesIO(drawn_crop("fox", 1, 64))).convert("RGB"))).permute(2, 0, 1)
    transform = altered(plan_with(augment=list(ways), augment_strength=strength).train, 64)
    torch.manual_seed(seed)
    return crop, transform(crop) if transform else crop


@pytest.mark.parametrize("way", ["flip", "jitter", "tilt", "colour", "grey", "blur", "compress", "erasing"])
def test_every_alteration_changes_some_crops_and_never_their_size(way: str) -> None:
    pairs = [altered_crop(seed, way) for seed in range(24)]
    changed = [not np.array_equal(before, after) for before, after in pairs]
    assert 0 < sum(changed) <= 24
    assert {(tuple(after.shape), str(after.dtype)) for _, after in pairs} == {((3, 64, 64), "torch.uint8")}


def test_crops_are_turned_over_sideways_only() -> None:
    import torch

    for seed in range(12):
        before, after = altered_crop(seed, "flip")
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))


def test_stronger_alterations_change_more() -> None:
    def change(strength: float) -> float:
        pairs = [altered_crop(seed, "jitter", "colour", "erasing", strength=strength) for seed in range(30)]
        return float(np.mean([np.abs(a.numpy().astype(float) - b.numpy()).mean() for a, b in pairs]))

    assert change(0.3) < change(1.0) < change(2.0)


def test_an_alteration_that_nobody_knows_is_named_with_those_that_are_known() -> None:
    with pytest.raises(PlanError, match=r"train\.augment.*'upside_down'"):
        plan_with(augment=["flip", "upside_down"])
    assert plan_with(augment=[]).train.alterations() == ()
    assert plan_with(augment=["grey", "flip", "grey"]).train.alterations() == ("flip", "grey")


def test_mixup_and_cutmix_give_each_crop_a_share_of_its_neighbours_class() -> None:
    import torch

    from animl_pipeline.steps.training.augmentation import mix, mixed

    inputs, targets = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8).clone(), torch.tensor([0, 1, 2, 0])
    for wanted in ({"mixup": 0.5}, {"cutmix": 1.0}):
        torch.manual_seed(3)
        made, shares = mix(mixed(plan_with(**wanted).train, 3), inputs, targets)
        own = shares[1, 1]  # of the second crop, whose neighbour is the first
        assert shares.sum(1).tolist() == pytest.approx([1] * 4)
        assert 0 < own < 1
        assert float(made[1].mean()) == pytest.approx(float(own), abs=1e-5)  # its pixels are 1, the neighbour's 0
    assert mix(mixed(plan_with().train, 3), inputs, targets)[1] is targets


# -- phases, rates -------------------------------------------------------------------------------------------------------


def test_the_rate_holds_for_the_head_then_rises_and_falls() -> None:
    from animl_pipeline.steps.training.freezing import rate_at

    rates = [rate_at(step, 10, 110, 10) for step in range(110)]
    assert rates[:10] == [1.0] * 10
    assert rates[10:20] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_the_head_phase_leaves_the_backbone_and_its_batch_statistics_alone() -> None:
    import timm

    from animl_pipeline.steps.training.freezing import Phases

    network = timm.create_model("test_efficientnet", num_classes=3)
    phases = Phases(network, ("classifier",), plan_with(weights="timm").train, 5)
    assert phases.steps == 5
    phases.enter(head_only=True)
    assert [n for n, p in network.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    assert not any(m.training for n, m in network.named_modules() if "bn" in n)
    phases.enter(head_only=False)
    assert all(p.requires_grad for p in network.parameters())
    assert all(m.training for m in network.modules())


def test_frozen_layers_never_learn_nor_do_their_batch_statistics() -> None:
    import timm

    from animl_pipeline.steps.training.freezing import Phases

    network = timm.create_model("test_efficientnet", num_classes=3)
    Phases(network, ("classifier",), plan_with(weights="timm", frozen_layers=0.5).train, 5).enter(head_only=False)
    learning = [n for n, p in network.named_parameters() if p.requires_grad]
    assert not any(n.startswith(("conv_stem", "bn1", "blocks.0")) for n in learning)
    assert {"conv_head.weight", "classifier.weight"} <= set(learning)
    assert not network.bn1.training
    assert network.bn2.training
    Phases(network, ("classifier",), plan_with(weights="timm", frozen_layers=1.0).train, 5).enter(head_only=False)
    assert [n for n, p in network.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]


def test_batch_statistics_stay_when_the_plan_says_so_while_the_weights_learn() -> None:
    import timm

    from animl_pipeline.steps.training.freezing import Phases

    network = timm.create_model("test_efficientnet", num_classes=3)
    Phases(network, ("classifier",), plan_with(freeze_norm=True).train, 5).enter(head_only=False)
    assert all(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules() if "BatchNorm" in type(m).__name__)


def test_head_and_backbone_learn_at_their_own_rates_and_norms_do_not_decay() -> None:
    import timm

    from animl_pipeline.steps.training.freezing import groups

    network = timm.create_model("test_efficientnet", num_classes=3)
    spec = plan_with(lr=0.01, backbone_lr=0.1, weight_decay=0.05).train
    made = groups(network, ("classifier",), spec)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in made for p in g["params"]}
    assert len(rates) == len(list(network.parameters()))
    assert rates[id(network.classifier.weight)] == (0.01, 0.05)
    assert rates[id(network.classifier.bias)] == (0.01, 0.0)
    assert rates[id(network.conv_stem.weight)] == (pytest.approx(0.001), 0.05)
    assert rates[id(network.bn1.weight)] == (pytest.approx(0.001), 0.0)


# -- steps ---------------------------------------------------------------------------------------------------------------


def trained_weights(store: Store, settings: Settings, **train: Any) -> dict[str, Any]:
    """The weights after an epoch, without what looks at the other crops of a batch."""
    from safetensors.torch import load_file

    model = train_classifier(*crops_and_splits(store), plan_with(epochs=1, freeze_norm=True, **train), store, settings)
    return dict(load_file(store.path(model, "weights.safetensors")))


def test_a_step_of_two_batches_is_that_of_one_and_averaged_weights_lie_between(store: Store, settings: Settings) -> None:
    import torch

    from animl_pipeline.steps.training.network import build_network

    start = build_network(plan_with(), settings).state_dict()
    whole = trained_weights(store, settings, batch_size=8)
    halves = trained_weights(store, settings, batch_size=4, accumulate_batches=2)
    average = trained_weights(store, settings, batch_size=8, ema=0.99)
    moved = {name: float(torch.dist(t, start[name])) for name, t in whole.items() if t.is_floating_point() and not torch.equal(t, start[name])}
    assert len(moved) > 10
    assert all(torch.dist(halves[name], whole[name]) < 0.05 * far for name, far in moved.items())
    assert all(0 < torch.dist(average[name], start[name]) < 0.99 * far for name, far in moved.items())


def test_a_batch_is_parted_evenly_and_no_crop_is_left_alone() -> None:
    from animl_pipeline.steps.training.gpu_memory import parts

    assert [(p.start, p.stop) for p in parts(16, 8)] == [(0, 8), (8, 16)]
    assert [p.stop - p.start for p in parts(17, 8)] == [5, 6, 6]
    assert [p.stop - p.start for p in parts(3, 2)] == [3]
    assert [p.stop - p.start for p in parts(3, 1)] == [1, 1, 1]
    assert [p.stop - p.start for p in parts(1, 8)] == [1]


def test_sixteen_bits_are_refused_where_there_is_no_gpu(store: Store, settings: Settings) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingError, match=r"train\.precision: 16 is for GPUs"):
        train_classifier(*crops_and_splits(store), plan_with(precision="16"), store, settings)


SHORT_OF_MEMORY = """
import logging, resource, sys
from pathlib import Path
import torch
from animl_pipeline import progress
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.step_cache import open_store
from tests.support.blots import crops_and_splits, plan_with, settings_at
torch.set_num_threads(1)
logging.basicConfig(level=logging.INFO, format="%(message)s")
settings = settings_at(Path(sys.argv[1]))
store = open_store(settings)
crops, splits = crops_and_splits(store, {"fox": 32, "bird": 32, "skunk": 32}, size=96)
plan = plan_with(epochs=1, batch_size=96)
plan = plan.model_copy(update={"view": plan.view.model_copy(update={"size": 96})})

def narrow(what, done, total):
    if what == "training steps" and done == 0:
        used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[2]) * 2**20, resource.RLIM_INFINITY))
    elif what == "training steps" and done == total:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

progress.listen(narrow)
model = train_classifier(crops, splits, plan, store, settings)
print("noted", model.counts.noted)
"""


def short_of_memory(folder: Path, megabytes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(folder), str(megabytes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_out_of_memory_halves_the_batch_says_so_and_the_step_stays_as_large(tmp_path: Path) -> None:
    done = short_of_memory(tmp_path, megabytes=160)
    assert done.returncode == 0, done.stderr
    assert "out of memory with 96 crops at a time" in done.stderr
    assert "so a step stays 96 crops" in done.stderr
    assert "'crops_at_once_for_want_of_memory': " in done.stdout


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 1), (5, 2)])
def test_depthwise_convolutions_in_bfloat16_have_torchs_gradients(kernel: int, stride: int) -> None:
    import torch

    from animl_pipeline.steps.training.depthwise_bfloat16 import FastDepthwise, _Depthwise

    torch.manual_seed(0)
    inputs = torch.randn(2, 16, 13, 13).to(memory_format=torch.channels_last).requires_grad_()
    layer = torch.nn.Conv2d(16, 16, kernel, stride, padding=kernel // 2, groups=16)
    exact = torch.autograd.grad(layer(inputs).square().sum(), [inputs, *layer.parameters()])
    with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        made = layer(inputs)
    assert made.dtype == torch.bfloat16
    ours = torch.autograd.grad(made.float().square().sum(), [inputs, *layer.parameters()])
    assert all(torch.dist(a, b) < 0.02 * b.norm() for a, b in zip(ours, exact, strict=True))
    seen = [f.name() for f in _ancestors(made.grad_fn)]
    assert f"{_Depthwise.__name__}Backward" in seen


def _ancestors(node: Any) -> list[Any]:
    return [] if node is None else [node, *(a for before, _ in node.next_functions for a in _ancestors(before))]


DEVICES = """
import sys
from pathlib import Path
import torch
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.step_cache import open_store
from tests.support.blots import crops_and_splits, plan_with, settings_at
torch.set_num_threads(1)
settings = settings_at(Path(sys.argv[1]))
store = open_store(settings)
plan = plan_with(epochs=2, devices=int(sys.argv[2]), freeze_norm=True, ema=0.9)
model = train_classifier(*crops_and_splits(store), plan, store, settings)
print(store.table(model, "history.parquet")["val_loss"].tolist())
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_devices_that_share_each_batch_learn_what_one_learns(tmp_path: Path) -> None:
    """As two processes on the CPU, where there is no GPU."""
    seen = []
    for devices in ("1", "2"):
        command = [sys.executable, "-c", DEVICES, str(tmp_path / devices), devices]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
        seen.append([float(v) for v in done.stdout.strip().splitlines()[-1].strip("[]").split(",")])
    assert seen[1] == pytest.approx(seen[0], rel=1e-3)
