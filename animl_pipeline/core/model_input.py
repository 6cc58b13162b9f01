"""Make the classifier's input from an image and a box: square → crop → resize → normalise.

Training, evaluation and the endpoint all use these functions, so a model always sees the same pixels. The recipe is the one of
Animl's own endpoints: the box in whole pixels, a square as large as its longer side, shifted to stay inside the image and black
where it cannot, resized (bicubic) and normalised. EXIF rotation is ignored, because Animl's boxes and its detectors ignore it.

Only Pillow and numpy are needed, because this also runs inside the endpoint.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from animl_pipeline.core.box_type import Box
from animl_pipeline.core.decode_image import MAX_PIXELS
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.model_card import ModelInput

VERSION = 1
"""Raised when a box gives other pixels. Crops are then extracted again and models trained again."""


class Square(NamedTuple):
    """A square in whole pixels. It reaches beyond an image that is smaller than it."""

    left: int
    top: int
    side: int


def square_around(box: Box, width: int, height: int, margin: float = 0.0) -> Square:
    """The square around ``box`` that the model sees, in an image of ``width`` x ``height`` pixels.

    Its side is the longer side of the box in whole pixels (at least 1), widened by ``margin`` of itself on every side. It is
    centred on the box and then shifted to stay inside the image. If the image is too small, it reaches beyond both edges equally.
    """
    left, right = int(box.xmin * width), int(box.xmax * width)
    top, bottom = int(box.ymin * height), int(box.ymax * height)
    side = max(right - left, bottom - top, 1)
    side += 2 * round(side * margin)
    return Square(_shift_inside(left + right, side, width), _shift_inside(top + bottom, side, height), side)


def extract_crop(image: Image.Image, box: Box, model_input: ModelInput) -> Image.Image:
    """The crop of ``box``: an RGB image of ``model_input.size`` x ``model_input.size`` pixels, black outside of the image.

    Raises:
        ImageError: the square has more than ``MAX_PIXELS`` pixels, because the image is a long thin strip.
    """
    left, top, side = square_around(box, image.width, image.height, model_input.margin)
    if side * side > MAX_PIXELS:
        raise ImageError(
            f"expected a crop of at most {MAX_PIXELS:,} pixels, found a square of {side} x {side} in an image of {image.width} x {image.height}"
        )
    square = image.crop((left, top, left + side, top + side))
    return square.resize((model_input.size, model_input.size), Image.Resampling.BICUBIC)


def normalise(crops: list[Image.Image], model_input: ModelInput) -> NDArray[np.float32]:
    """Crops as the model's input: float32 [n, 3, size, size], RGB, (value / 255 - mean) / std."""
    pixels = np.stack([np.asarray(crop, dtype=np.uint8) for crop in crops])
    return normalise_array(pixels, model_input)


def normalise_array(pixels: NDArray[np.uint8], model_input: ModelInput) -> NDArray[np.float32]:
    """uint8 [n, size, size, 3] RGB → float32 [n, 3, size, size], (value / 255 - mean) / std."""
    mean, std = np.asarray(model_input.mean, np.float32), np.asarray(model_input.std, np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _shift_inside(twice_centre: int, side: int, length: int) -> int:
    """Start of a side that is centred on ``twice_centre / 2``, shifted to stay inside 0..length if it fits."""
    if side >= length:
        return (length - side) // 2
    return min(max((twice_centre - side) // 2, 0), length - side)
