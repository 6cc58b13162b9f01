"""Images of a red disc on grass, with an EXIF orientation."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

RED = (255, 0, 0)


class DiscImage(NamedTuple):
    """An image file, and the box of the disc in the image as stored: ymin, xmin, ymax, xmax, relative."""

    data: bytes
    box: tuple[float, float, float, float]


def disc_image(
    orientation: int, width: int = 64, height: int = 48, x: int = 16, y: int = 14, radius: int = 8, kind: str = "JPEG", seed: int = 0
) -> DiscImage:
    """An image whose stored pixels have a disc around ``x``, ``y``; orientation 0 leaves EXIF out."""
    pixels = np.random.default_rng(seed).integers(40, 90, (height, width, 3)).astype(np.uint8)
    pixels[..., 1] += 90
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"exif": exif.tobytes()} if orientation else {}), **({"quality": 95} if kind == "JPEG" else {}))
    box = ((y - radius) / height, (x - radius) / width, (y + radius + 1) / height, (x + radius + 1) / width)
    return DiscImage(buffer.getvalue(), box)
