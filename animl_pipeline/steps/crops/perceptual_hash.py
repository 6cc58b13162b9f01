"""What a picture looks like, in 128 bits that stay nearly the same when it is resized or encoded again.

Of the middle four fifths of the picture's height (above and below cameras write text), shrunk to 9 × 9 grey cells: for
each of 8 × 8 cells, whether the next one to the right is brighter, and whether the next one below is. After N. Krawetz,
"Kind of Like That" (hackerfactor.com, 2013), in both directions.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

CELLS = 9
VERSION = 1
"""Raised when an image gives another hash."""
GRID = (768, 384)
"""Pixels across and down that are looked at: so many say what a cell's mean is, and looking at all takes three times as long."""
FLAT = 2.0
"""Grey levels (standard deviation over the cells) below which a picture shows nothing to know it by, such as a black one."""


def compute_phash(image: Image.Image) -> str:
    """The 128 bits as 32 hexadecimal digits; empty text where the picture is too flat to be known by them."""
    width, height = image.size
    middle = (0, round(0.1 * height), width, max(round(0.9 * height), round(0.1 * height) + 1))
    grid = (min(width, GRID[0]), min(middle[3] - middle[1], GRID[1]))
    small = image.resize(grid, Image.Resampling.NEAREST, box=middle).resize((CELLS, CELLS), Image.Resampling.BOX).convert("L")
    grey = np.asarray(small, np.int16)
    if grey.std() < FLAT:
        return ""
    right = grey[:-1, 1:] > grey[:-1, :-1]
    below = grey[1:, :-1] > grey[:-1, :-1]
    return np.packbits(np.concatenate([right.ravel(), below.ravel()])).tobytes().hex()
