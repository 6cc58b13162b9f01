"""The interface of a detector, ``preprocess`` and ``predict``, and its detections in one form for all detector families."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.core.box_type import BoxTuple
from animl_pipeline.core.write_megadetector_results import ANIMAL, PERSON, VEHICLE

CATEGORY_OF_NAME = {
    "animal": ANIMAL, "animals": ANIMAL, "person": PERSON, "people": PERSON, "human": PERSON, "vehicle": VEHICLE, "vehicles": VEHICLE,
}  # fmt: skip
"""A class name of a checkpoint or results file in lower case → MegaDetector's category."""
STRIDE = 32
"""The sides of a network's input are multiples of this."""


class NetworkInput(NamedTuple):
    """An image as a network takes it: RGB uint8 [height, width, 3], with padding.

    The image fills the rectangle of ``width`` x ``height`` pixels whose upper left corner is at ``left``, ``top``.
    """

    pixels: NDArray[np.uint8]
    left: int
    top: int
    width: int
    height: int


class Detection(NamedTuple):
    """One detected object: MegaDetector's category, the confidence (0-1), and a box relative to the image's height and width."""

    category: str
    confidence: float
    ymin: float
    xmin: float
    ymax: float
    xmax: float


class Detector(Protocol):
    """A loaded detector.

    Attributes:
        batched: True: one thread calls ``predict`` with a batch (a GPU). False: several threads call it with one image each (a CPU, an endpoint).
        categories: the categories that the detector can find.
    """

    batched: bool
    categories: frozenset[str]

    def preprocess(self, data: bytes) -> Any:
        """Decode an image and make the input of ``predict``. Several threads may call it.

        Raises:
            ImageError: the image does not decode.
        """

    def predict(self, inputs: Sequence[Any]) -> list[list[Detection]]:
        """The detections of each image above the detector's confidence. They depend on no other image of the batch."""


def scaled_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of the image when it is scaled to fit ``side`` x ``side`` pixels."""
    ratio = min(side / width, side / height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def to_image_box(box: Sequence[float], network_input: NetworkInput) -> BoxTuple:
    """A box [left, top, right, bottom] in pixels of the network's input → [ymin, xmin, ymax, xmax] relative to the image."""
    left, top, right, bottom = box
    x, y, width, height = network_input.left, network_input.top, network_input.width, network_input.height
    return (top - y) / height, (left - x) / width, (bottom - y) / height, (right - x) / width


def clean_detections(detections: Iterable[Detection]) -> list[Detection]:
    """The detections, highest confidence first, with boxes clipped to the image and without duplicates and boxes that have no area.

    Boxes are rounded to 1e-5 and confidences to 1e-4. This is finer than anybody uses them, and it removes differences between
    processors in the last bit.
    """
    rounded = [
        Detection(d.category, round(float(d.confidence), 4), *(round(min(max(float(v), 0.0), 1.0), 5) for v in (d.ymin, d.xmin, d.ymax, d.xmax)))
        for d in detections
    ]
    unique = {d for d in rounded if d.ymin < d.ymax and d.xmin < d.xmax}
    return sorted(unique, key=lambda d: (-d.confidence, d.category, d[2:]))
