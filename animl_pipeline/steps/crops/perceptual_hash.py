"""A perceptual hash of 128 bits, which stays nearly the same when an image is resized or encoded again.

It is a difference hash: the image is shrunk to 9 x 9 grey cells, and for each of 8 x 8 cells one bit says whether the next cell to the right
is brighter, and one whether the next cell below is. After N. Krawetz, "Kind of Like That" (hackerfactor.com, 2013), in both directions.
Only the middle four fifths of the height count, because cameras print text above and below.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

VERSION = 1
"""Raised when an image gets another hash."""
CELLS = 9
SAMPLED_PIXELS = (768, 384)
"""Pixels across and down that are sampled. They are enough for the mean of a cell, and all pixels would take three times as long."""
MIN_CONTRAST = 2.0
"""Standard deviation of the cells in grey levels. An image below it, such as a black one, has nothing to recognise it by."""


def compute_phash(image: Image.Image) -> str:
    """The hash as 32 hexadecimal digits; empty text if the image has too little contrast."""
    width, height = image.size
    middle = (0, round(0.1 * height), width, max(round(0.9 * height), round(0.1 * height) + 1))
    sampled = (min(width, SAMPLED_PIXELS[0]), min(middle[3] - middle[1], SAMPLED_PIXELS[1]))
    small = image.resize(sampled, Image.Resampling.NEAREST, box=middle).resize((CELLS, CELLS), Image.Resampling.BOX).convert("L")
    grey = np.asarray(small, np.int16)
    if grey.std() < MIN_CONTRAST:
        return ""
    right = grey[:-1, 1:] > grey[:-1, :-1]
    below = grey[1:, :-1] > grey[:-1, :-1]
    return np.packbits(np.concatenate([right.ravel(), below.ravel()])).tobytes().hex()
