"""Options of training: losses, augmentation, freezing, learning rates, averaged weights, accumulated batches, precision, devices."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PlanError, TrainingError
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.store import Store
from tests.support.paths import ROOT
from tests.support.training_crops import CLASSES, SIZE, crops_and_splits, draw_crop, plan_with

pytestmark = pytest.mark.usefixtures("one_thread")


# -- losses --------------------------------------------------------------------------------------------------------------


def make_loss(counts: list[int], **train: Any) -> Any:
    from animl_pipeline.steps.training.losses import ClassificationLoss

    return ClassificationLoss(plan_with(sampling="natural", **train).train, np.array(counts))


def test_rare_classes_have_a_higher_weight_by_their_effective_number_of_crops() -> None:
    from animl_pipeline.steps.training.losses import class_balanced_weights

    weights = class_balanced_weights(np.array([1000, 10, 1]), 0.99).tolist()
    effective = [(1 - 0.99**n) / 0.01 for n in (1000, 10, 1)]
    assert [w * e for w, e in zip(weights, effective, strict=True)] == pytest.approx([weights[2]] * 3)
    assert sum(weights) == pytest.approx(3)
    assert class_balanced_weights(np.array([7, 300]), 0.0).tolist() == [1, 1]  # β 0: equal weights


def test_focal_loss_is_the_papers_and_with_gamma_zero_it_is_cross_entropy() -> None:
    import torch

    logits, targets = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]]), torch.tensor([0, 1])
    p = logits.softmax(1)[[0, 1], targets]
    focal = make_loss([1, 1, 1], loss="focal", focal_gamma=2.0, label_smoothing=0.0)
    assert float(focal(logits, targets)) == pytest.approx(float((-((1 - p) ** 2) * p.log()).mean()), rel=1e-5)
    plain = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    assert float(make_loss([1, 1, 1], loss="focal", focal_gamma=0.0, label_smoothing=0.1)(logits, targets)) == pytest.approx(float(plain), rel=1e-5)
    assert float(make_loss([5, 5, 5], loss="class_balanced", label_smoothing=0.1)(logits, targets)) == pytest.approx(float(plain), rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "class_balanced", "focal"])
def test_loss_and_gradient_are_finite_for_extreme_logits_and_mixed_classes(loss: str) -> None:
    import torch

    logits = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    value = make_loss([3, 2, 1], loss=loss, focal_gamma=0.5, label_smoothing=0.0)(logits, torch.tensor([[1.0, 0, 0], [0.3, 0.7, 0.0]]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_a_plan_cannot_compensate_for_rare_classes_twice() -> None:
    with pytest.raises(PlanError, match="class_balanced"):
        plan_with(loss="class_balanced")


# -- augmentation --------------------------------------------------------------------------------------------------------


def augment_crop(seed: int, *augmentations: str, strength: float = 1.0) -> Any:
    """A crop before and after these augmentations."""
    import io

    import torch
    from PIL import Image

    from animl_pipeline.steps.training.augmentation import augmentation_transform

    crop = torch.from_numpy(np.array(Image.open(io.BytesIO(draw_crop("fox", 1, 64))).convert("RGB"))).permute(2, 0, 1)
    transform = augmentation_transform(plan_with(augment=list(augmentations), augment_strength=strength).train, 64)
    torch.manual_seed(seed)
    return crop, transform(crop) if transform else crop


@pytest.mark.parametrize("name", ["flip", "jitter", "tilt", "colour", "grey", "blur", "compress", "erasing"])
def test_every_augmentation_changes_some_crops_and_never_their_size(name: str) -> None:
    pairs = [augment_crop(seed, name) for seed in range(24)]
    changed = [not np.array_equal(before, after) for before, after in pairs]
    assert 0 < sum(changed) <= 24
    assert {(tuple(after.shape), str(after.dtype)) for _, after in pairs} == {((3, 64, 64), "torch.uint8")}


def test_crops_are_flipped_horizontally_only() -> None:
    import torch

    for seed in range(12):
        before, after = augment_crop(seed, "flip")
        assert torch.equal(after, before) or torch.equal(after, before.flip(-1))


def test_a_higher_strength_changes_crops_more() -> None:
    def change(strength: float) -> float:
        pairs = [augment_crop(seed, "jitter", "colour", "erasing", strength=strength) for seed in range(30)]
        return float(np.mean([np.abs(a.numpy().astype(float) - b.numpy()).mean() for a, b in pairs]))

    assert change(0.3) < change(1.0) < change(2.0)


def test_an_unknown_augmentation_is_refused_and_repeated_ones_count_once() -> None:
    with pytest.raises(PlanError, match="upside_down"):
        plan_with(augment=["flip", "upside_down"])
    assert plan_with(augment=[]).train.augmentations() == ()
    assert plan_with(augment=["grey", "flip", "grey"]).train.augmentations() == ("flip", "grey")


def test_mixup_and_cutmix_mix_pixels_and_class_shares_alike() -> None:
    import torch

    from animl_pipeline.steps.training.augmentation import mix_batch, mixing_transform

    inputs, targets = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 3, 8, 8).clone(), torch.tensor([0, 1, 2, 0])
    for options in ({"mixup": 0.5}, {"cutmix": 1.0}):
        torch.manual_seed(3)
        mixed, shares = mix_batch(mixing_transform(plan_with(**options).train, 3), inputs, targets)
        own = shares[1, 1]  # of the second crop, which is mixed with the first
        assert shares.sum(1).tolist() == pytest.approx([1] * 4)
        assert 0 < own < 1
        assert float(mixed[1].mean()) == pytest.approx(float(own), abs=1e-5)  # its pixels are 1, the first crop's are 0
    assert mix_batch(mixing_transform(plan_with().train, 3), inputs, targets)[1] is targets


# -- freezing, rates -----------------------------------------------------------------------------------------------------


def test_the_learning_rate_is_constant_for_the_head_then_rises_and_falls() -> None:
    from animl_pipeline.steps.training.fine_tuning_schedule import learning_rate_factor

    rates = [learning_rate_factor(step, 10, 110, 10) for step in range(110)]
    assert rates[:10] == [1.0] * 10
    assert rates[10:20] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert rates[-1] == pytest.approx(0.01, abs=0.001)


def test_the_head_phase_freezes_the_backbone_and_its_batch_norm_statistics() -> None:
    import timm

    from animl_pipeline.steps.training.fine_tuning_schedule import FreezingSchedule

    network = timm.create_model("test_efficientnet", num_classes=3)
    schedule = FreezingSchedule(network, ("classifier",), plan_with(weights="timm").train, 5)
    assert schedule.head_steps == 5
    schedule.apply(head_only=True)
    assert [n for n, p in network.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
    assert not any(m.training for n, m in network.named_modules() if "bn" in n)
    schedule.apply(head_only=False)
    assert all(p.requires_grad for p in network.parameters())
    assert all(m.training for m in network.modules())


def test_frozen_layers_and_their_batch_norm_statistics_are_never_trained() -> None:
    import timm

    from animl_pipeline.steps.training.fine_tuning_schedule import FreezingSchedule

    network = timm.create_model("test_efficientnet", num_classes=3)
    FreezingSchedule(network, ("classifier",), plan_with(weights="timm", frozen_layers=0.5).train, 5).apply(head_only=False)
    trained = [n for n, p in network.named_parameters() if p.requires_grad]
    assert not any(n.startswith(("conv_stem", "bn1", "blocks.0")) for n in trained)
    assert {"conv_head.weight", "classifier.weight"} <= set(trained)
    assert not network.bn1.training
    assert network.bn2.training
    FreezingSchedule(network, ("classifier",), plan_with(weights="timm", frozen_layers=1.0).train, 5).apply(head_only=False)
    assert [n for n, p in network.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]


def test_freeze_norm_keeps_batch_norm_statistics_while_all_weights_are_trained() -> None:
    import timm

    from animl_pipeline.steps.training.fine_tuning_schedule import FreezingSchedule

    network = timm.create_model("test_efficientnet", num_classes=3)
    FreezingSchedule(network, ("classifier",), plan_with(freeze_norm=True).train, 5).apply(head_only=False)
    assert all(p.requires_grad for p in network.parameters())
    assert not any(m.training for m in network.modules() if "BatchNorm" in type(m).__name__)


def test_head_and_backbone_have_their_own_learning_rates_and_norms_have_no_weight_decay() -> None:
    import timm

    from animl_pipeline.steps.training.fine_tuning_schedule import parameter_groups

    network = timm.create_model("test_efficientnet", num_classes=3)
    config = plan_with(lr=0.01, backbone_lr=0.1, weight_decay=0.05).train
    groups = parameter_groups(network, ("classifier",), config)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rates) == len(list(network.parameters()))
    assert rates[id(network.classifier.weight)] == (0.01, 0.05)
    assert rates[id(network.classifier.bias)] == (0.01, 0.0)
    assert rates[id(network.conv_stem.weight)] == (pytest.approx(0.001), 0.05)
    assert rates[id(network.bn1.weight)] == (pytest.approx(0.001), 0.0)


# -- steps ---------------------------------------------------------------------------------------------------------------


def drawn(folder: Path, split: str, numbers: dict[str, range]) -> Any:
    """Drawn crops of each class as training reads them."""
    from animl_pipeline.steps.training.dataloaders import DecodedCrops

    crops = [(CLASSES.index(c), np.asarray(Image.open(io.BytesIO(draw_crop(c, n))))) for c, of_class in numbers.items() for n in of_class]
    pixels = np.memmap(folder / split, np.uint8, "w+", shape=(len(crops), SIZE, SIZE, 3))
    pixels[:] = [image for _, image in crops]
    return DecodedCrops(pixels, np.array([number for number, _ in crops]), len(CLASSES))


def test_two_accumulated_batches_train_like_one_and_averaged_weights_move_less(tmp_path: Path, settings: Settings) -> None:
    import torch

    from animl_pipeline.steps.training.network_and_weights import build_network
    from animl_pipeline.steps.training.trainer import train_network

    crops = drawn(tmp_path, "train", {"fox": range(24), "bird": range(12), "skunk": range(5)})
    val = drawn(tmp_path, "val", dict.fromkeys(CLASSES, range(30, 36)))

    def weights(**train: Any) -> dict[str, Any]:
        """The weights after an epoch, or at the start; without training batch norm, which would depend on the other crops of a batch."""
        plan = plan_with(epochs=1, freeze_norm=True, **train)
        network = build_network(plan.train, CLASSES, plan.model_input, settings)
        if train:
            train_network(network, crops, val, plan.train, plan.model_input, tmp_path / f"{len(list(tmp_path.iterdir()))}.ckpt", tmp_path / "curves")
        return network.state_dict()

    start, whole, halves, average = (
        weights(**train) for train in ({}, {"batch_size": 8}, {"batch_size": 4, "accumulate_batches": 2}, {"batch_size": 8, "ema": 0.99})
    )
    moved = {name: float(torch.dist(t, start[name])) for name, t in whole.items() if t.is_floating_point() and not torch.equal(t, start[name])}
    assert len(moved) > 10
    assert all(torch.dist(halves[name], whole[name]) < 0.05 * far for name, far in moved.items())
    assert all(0 < torch.dist(average[name], start[name]) < 0.99 * far for name, far in moved.items())


def test_precision_16_is_refused_without_a_gpu(store: Store, settings: Settings) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingError) as caught:
        train_classifier(*crops_and_splits(store), plan_with(precision="16"), store, settings)
    assert caught.value.code == "no_gpu"


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 1), (5, 2)])
def test_bfloat16_depthwise_convolutions_have_torchs_gradients(kernel: int, stride: int) -> None:
    import torch

    from animl_pipeline.steps.training.depthwise_bfloat16 import Float32DepthwiseGradients, _Depthwise

    torch.manual_seed(0)
    inputs = torch.randn(2, 16, 13, 13).to(memory_format=torch.channels_last).requires_grad_()
    layer = torch.nn.Conv2d(16, 16, kernel, stride, padding=kernel // 2, groups=16)
    exact = torch.autograd.grad(layer(inputs).square().sum(), [inputs, *layer.parameters()])
    with torch.autocast("cpu", torch.bfloat16), Float32DepthwiseGradients():
        output = layer(inputs)
    assert output.dtype == torch.bfloat16
    ours = torch.autograd.grad(output.float().square().sum(), [inputs, *layer.parameters()])
    assert all(torch.dist(a, b) < 0.02 * b.norm() for a, b in zip(ours, exact, strict=True))
    functions = [f.name() for f in _ancestors(output.grad_fn)]
    assert f"{_Depthwise.__name__}Backward" in functions


def _ancestors(node: Any) -> list[Any]:
    return [] if node is None else [node, *(a for before, _ in node.next_functions for a in _ancestors(before))]


DEVICES = """
import sys
from pathlib import Path
import torch
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.store import open_store
from tests.support.training_crops import crops_and_splits, plan_with, settings_at
torch.set_num_threads(1)
settings = settings_at(Path(sys.argv[1]))
store = open_store(settings)
plan = plan_with(epochs=2, devices=int(sys.argv[2]), freeze_norm=True, ema=0.9)
model = train_classifier(*crops_and_splits(store), plan, store, settings)
print(store.table(model, "history.parquet")["val_loss"].tolist())
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_devices_that_share_each_batch_train_like_one(tmp_path: Path) -> None:
    """Without a GPU: two processes on the CPU."""
    losses = []
    for devices in ("1", "2"):
        command = [sys.executable, "-c", DEVICES, str(tmp_path / devices), devices]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
        losses.append([float(v) for v in done.stdout.strip().splitlines()[-1].strip("[]").split(",")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
