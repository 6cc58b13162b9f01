"""What every detector family offers: two doors, preprocess and predict, and found objects in one tidy form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ANIMAL, PERSON, VEHICLE = "1", "2", "3"
CATEGORIES = {ANIMAL: "animal", PERSON: "person", VEHICLE: "vehicle"}
"""MegaDetector's categories."""

STRIDE = 32
"""The side of a network's input is a multiple of this."""


class Prepared(NamedTuple):
    """A picture at a network's scale: uint8 [height, width, 3], of which the upper left ``width`` x ``height`` pixels are picture."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


class Found(NamedTuple):
    """One object: MegaDetector category, confidence, and a box relative to the picture."""

    category: str
    confidence: float
    ymin: float
    xmin: float
    ymax: float
    xmax: float


class Detector(Protocol):
    """A loaded detector."""

    def preprocess(self, picture: Image.Image) -> Prepared:
        """A picture at the network's scale; safe to call from several threads."""

    def predict(self, prepared: Prepared) -> list[Found]:
        """What the network finds in one picture, above its floor of confidence.

        One picture a pass: on the CPU a larger batch is slower, on a GPU the decoding of pictures takes longer than the
        network, and an answer never depends on which pictures happened to come together.
        """


def scaled_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height that fit ``side`` x ``side`` pixels with the picture's aspect."""
    ratio = min(side / width, side / height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def tidy(found: Iterable[Found]) -> list[Found]:
    """Boxes inside the picture, most certain first; empty ones are gone.

    Boxes are rounded to 1e-5 and confidences to 1e-4, finer than any use of them, which keeps last-bit differences between
    processors out of the stored answers.
    """
    rounded = [
        Found(f.category, round(float(f.confidence), 4), *(round(min(max(float(v), 0.0), 1.0), 5) for v in (f.ymin, f.xmin, f.ymax, f.xmax)))
        for f in found
    ]
    whole = {f for f in rounded if f.ymin < f.ymax and f.xmin < f.xmax}
    return sorted(whole, key=lambda f: (-f.confidence, f.category, f[2:]))
