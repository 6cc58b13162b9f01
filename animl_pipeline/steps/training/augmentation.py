"""Crops altered before they are learnt from: what camera traps vary in, each way by its name. No vertical flip."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.transforms import v2

from animl_pipeline.config import TrainingConfig


def altered(spec: TrainingConfig, size: int) -> v2.Transform | None:
    """What the plan does to a crop, as a transform of uint8 [3, size, size]; None where it leaves crops as they are."""
    known = _ways(size, spec.augment_strength)
    ways = [known[name] for name in spec.alterations()]
    return v2.Compose(ways) if ways else None


def _ways(size: int, strength: float) -> dict[str, v2.Transform]:
    """Every way by its name; ``strength`` 1 is ordinary, beyond it is further and more often.

    flip: left for right. jitter: another box, shifted and zoomed in. tilt: turned and moved a little, also away. colour: light and
    sensor. grey: infrared at night. blur: focus and motion. compress: the camera's JPEG. erasing: grass in front.
    """

    def often(probability: float) -> float:
        return min(1.0, probability * strength)

    def far(share: float) -> float:
        return min(0.9, share * strength)

    light = v2.ColorJitter(brightness=far(0.3), contrast=far(0.3), saturation=far(0.3))
    return {
        "flip": v2.RandomHorizontalFlip(0.5),
        "jitter": v2.RandomResizedCrop(size, scale=(1 - far(0.3), 1.0), ratio=(1 - far(0.15), 1 / (1 - far(0.15))), antialias=True),
        "tilt": v2.RandomApply(
            [
                v2.RandomAffine(
                    10 * strength,
                    translate=(far(0.08), far(0.08)),
                    scale=(1 - far(0.15), 1 + far(0.1)),
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill=127,
                )
            ],
            often(0.5),
        ),
        "colour": v2.RandomApply([light], often(0.8)),
        "grey": v2.RandomGrayscale(often(0.2)),
        "blur": v2.RandomApply([v2.GaussianBlur(5, (0.1, 0.1 + 1.4 * strength))], often(0.15)),
        "compress": v2.RandomApply([v2.JPEG((round(100 - far(0.6) * 100), 95))], often(0.3)),
        "erasing": v2.RandomErasing(often(0.25), scale=(0.02, 0.02 + far(0.13))),
    }


def mixed(spec: TrainingConfig, classes: int) -> v2.Transform | None:
    """Mixup (Zhang et al. 2018), cutmix (Yun et al. 2019) or one of both by chance for a batch; None where the plan wants neither.

    Called with inputs [n, 3, size, size] and int64 [n], it returns inputs and the classes' shares float32 [n, classes].
    """
    ways: list[Any] = []
    if spec.mixup:
        ways.append(v2.MixUp(alpha=spec.mixup, num_classes=classes))
    if spec.cutmix:
        ways.append(v2.CutMix(alpha=spec.cutmix, num_classes=classes))
    return v2.RandomChoice(ways) if ways else None


def mix(transform: v2.Transform | None, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A batch mixed, where there is something to mix."""
    if transform is None or len(targets) == 1:
        return inputs, targets
    made: tuple[Tensor, Tensor] = transform(inputs, targets)
    return made
