"""What every detector family offers: two doors, preprocess and predict, and found objects in one tidy form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ANIMAL, PERSON, VEHICLE = "1", "2", "3"
CATEGORIES = {ANIMAL: "animal", PERSON: "person", VEHICLE: "vehicle"}
"""MegaDetector's categories."""

STRIDE = 32
"""The side of a network's input is a multiple of this."""


class Prepared(NamedTuple):
    """A picture as a network takes it: RGB uint8 [height, width, 3], in which the picture fills the rectangle that begins at
    ``left``, ``top`` and is ``width`` x ``height`` pixels large; the rest is padding.
    """

    pixels: NDArray[np.uint8]
    left: int
    top: int
    width: int
    height: int


class Detection(NamedTuple):
    """One object: MegaDetector category, confidence, and a box relative to the picture."""

    category: str
    confidence: float
    ymin: float
    xmin: float
    ymax: float
    xmax: float


class Detector(Protocol):
    """A loaded detector.

    ``alone`` tells how it is asked best: one picture at a time from several threads (a CPU, a server), or in batches from
    one thread (a GPU). ``categories`` are those that it can find.
    """

    alone: bool
    categories: frozenset[str]

    def preprocess(self, data: bytes) -> Any:
        """A picture's bytes as ``predict`` takes them; safe to call from several threads.

        Raises:
            PictureError: they do not decode.
        """

    def predict(self, prepared: Sequence[Any]) -> list[list[Detection]]:
        """What is found in each picture, above the floor of confidence. An answer depends on its own picture only."""


def scaled_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height that fit ``side`` x ``side`` pixels with the picture's aspect."""
    ratio = min(side / width, side / height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def tidy(found: Iterable[Detection]) -> list[Detection]:
    """Boxes inside the picture, most certain first; empty ones are gone.

    Boxes are rounded to 1e-5 and confidences to 1e-4, finer than any use of them, which keeps last-bit differences between
    processors out of the stored answers.
    """
    rounded = [
        Detection(f.category, round(float(f.confidence), 4), *(round(min(max(float(v), 0.0), 1.0), 5) for v in (f.ymin, f.xmin, f.ymax, f.xmax)))
        for f in found
    ]
    whole = {f for f in rounded if f.ymin < f.ymax and f.xmin < f.xmax}
    return sorted(whole, key=lambda f: (-f.confidence, f.category, f[2:]))


def in_image(corners: Sequence[float], prepared: Prepared) -> tuple[float, float, float, float]:
    """A box [left, top, right, bottom] in the network's pixels as [ymin, xmin, ymax, xmax] relative to the picture."""
    left, top, right, bottom = corners
    x, y, width, height = prepared.left, prepared.top, prepared.width, prepared.height
    return (top - y) / height, (left - x) / width, (bottom - y) / height, (right - x) / width


GREY = 114


def letterboxed(image: Image.Image, side: int) -> Prepared:
    """The picture on the smallest rectangle of whole strides: its longer side is ``side``, bilinear without smoothing, as theirs is."""
    import cv2

    width, height = scaled_size(image.width, image.height, side)
    scaled = cv2.resize(_pixels(image), (width, height), interpolation=cv2.INTER_LINEAR)
    more_x, more_y = -width % STRIDE, -height % STRIDE
    left, top = round(more_x / 2 - 0.1), round(more_y / 2 - 0.1)
    pixels = cv2.cvtColor(scaled, cv2.COLOR_RGBA2RGB) if scaled.shape[2] == 4 else scaled
    if more_x or more_y:
        pixels = cv2.copyMakeBorder(pixels, top, more_y - top, left, more_x - left, cv2.BORDER_CONSTANT, value=(GREY, GREY, GREY))
    return Prepared(np.asarray(pixels, np.uint8), left, top, width, height)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB picture, uint8 [height, width, 3 or 4], where it can be without a copy of them, which takes longer than decoding."""
    import pyarrow as pa

    try:
        flat = pa.array(image).flatten().to_numpy(zero_copy_only=True)
    except (ValueError, AttributeError, TypeError, pa.ArrowException):  # pillow keeps large pictures in several blocks
        return np.asarray(image)
    return np.asarray(flat.reshape(image.height, image.width, -1), np.uint8)
