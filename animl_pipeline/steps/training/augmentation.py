"""Augmentation of training crops: random changes that camera traps show. There is no vertical flip, since animals stand upright."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms import v2

from animl_pipeline.config import TrainingConfig


def augmentation_transform(config: TrainingConfig, size: int) -> v2.Transform | None:
    """The plan's augmentations as one transform of uint8 [3, size, size]; None if there are none."""
    known = _augmentations(size, config.augment_strength)
    chosen = [known[name] for name in config.augmentations()]
    return v2.Compose(chosen) if chosen else None


def _augmentations(size: int, strength: float) -> dict[str, v2.Transform]:
    """Every augmentation by its name. A ``strength`` above 1 makes the changes larger and more frequent.

    flip: left and right. jitter: the box shifted and zoomed. tilt: rotated, shifted and scaled a little. colour: light and sensor.
    grey: infrared at night. blur: focus and motion. compress: the camera's JPEG. erasing: grass in front of the animal.
    """

    def probability(base: float) -> float:
        return min(1.0, base * strength)

    def amount(base: float) -> float:
        return min(0.9, base * strength)

    affine = v2.RandomAffine(
        10 * strength,
        translate=(amount(0.08), amount(0.08)),
        scale=(1 - amount(0.15), 1 + amount(0.1)),
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=127,
    )
    ratio = 1 - amount(0.15)
    return {
        "flip": v2.RandomHorizontalFlip(0.5),
        "jitter": v2.RandomResizedCrop(size, scale=(1 - amount(0.3), 1.0), ratio=(ratio, 1 / ratio), antialias=True),
        "tilt": v2.RandomApply([affine], probability(0.5)),
        "colour": v2.RandomApply([v2.ColorJitter(brightness=amount(0.3), contrast=amount(0.3), saturation=amount(0.3))], probability(0.8)),
        "grey": v2.RandomGrayscale(probability(0.2)),
        "blur": v2.RandomApply([v2.GaussianBlur(5, (0.1, 0.1 + 1.4 * strength))], probability(0.15)),
        "compress": v2.RandomApply([v2.JPEG((round(100 - amount(0.6) * 100), 95))], probability(0.3)),
        "erasing": v2.RandomErasing(probability(0.25), scale=(0.02, 0.02 + amount(0.13))),
    }


def mixing_transform(config: TrainingConfig, classes: int) -> v2.Transform | None:
    """Mixup (Zhang et al. 2018), cutmix (Yun et al. 2019), or a random choice of the two for each batch; None if the plan has neither.

    The transform takes inputs [n, 3, size, size] and int64 [n]. It returns inputs and class shares float32 [n, classes].
    """
    transforms: list[v2.Transform] = []
    if config.mixup:
        transforms.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix:
        transforms.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    return v2.RandomChoice(transforms) if transforms else None


def mix_batch(transform: v2.Transform | None, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The batch after mixup or cutmix. A batch of one crop comes back unchanged."""
    if transform is None or len(targets) == 1:
        return inputs, targets
    mixed: tuple[Tensor, Tensor] = transform(inputs, targets)
    return mixed
