"""What a camera place is made of, and how things stand in its picture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from animl_pipeline.dev.synthetic.bodies import Colour, Pixels

WIDTH, HEIGHT = 640, 456
"""Of the scene in pixels, without the footer strip."""

GROUNDS: dict[str, tuple[Colour, Colour, Colour, Colour]] = {
    # soil, patches, grass, dry grass
    "dry grass": ((166, 146, 104), (138, 120, 82), (176, 158, 104), (150, 130, 84)),
    "green": ((112, 108, 70), (86, 94, 54), (98, 116, 58), (136, 138, 82)),
    "wash": ((170, 160, 144), (140, 130, 114), (128, 126, 84), (160, 146, 108)),
    "litter": ((112, 92, 70), (82, 66, 50), (104, 96, 62), (140, 116, 80)),
    "sand": ((190, 174, 144), (168, 150, 118), (146, 146, 102), (178, 164, 122)),
    "red soil": ((150, 112, 86), (122, 90, 70), (130, 124, 76), (164, 144, 96)),
}


class PathOrUrl(NamedTuple):
    """A camera place. ``horizon`` is a share of the height (below 0: the camera looks down and sees no sky).

    ``grass`` is the height of its blades in pixels at the near edge, ``sun`` where the light comes from (-1 left, 1 right).
    """

    name: str
    camera: str
    horizon: float
    ground: str
    hills: int = 0
    sea: bool = False
    path: bool = False
    shrubs: int = 0
    rocks: int = 0
    trunks: int = 0
    grass: int = 30
    blades: int = 2600
    sun: float = 0.4
    roll: float = 0.0


class Band(NamedTuple):
    """What stands between two lines: premultiplied colours [h, w, 3] 0-255 and cover [h, w] 0-1; ``foot`` is its mean line."""

    foot: float
    rgb: Pixels
    cover: Pixels


def cast_shadow(backdrop: Pixels, at: tuple[float, float], radius: float, sun: float, strength: float) -> None:
    """Darken the ground under a thing at ``at`` (x, y): a soft ellipse, drawn out away from the sun."""
    half = int(radius * 2.2) + 3
    target, _ = overlap(round(at[0]) - half, round(at[1]) - half, 2 * half, 2 * half)
    rows = np.arange(target[0].start, target[0].stop, dtype=np.float32)[:, None]
    columns = np.arange(target[1].start, target[1].stop, dtype=np.float32)[None, :]
    dx, dy = (columns - at[0] + 0.45 * sun * radius) / (1.15 * radius + 1), (rows - at[1]) / (0.26 * radius + 1)
    backdrop[target] *= (1 - strength * np.exp(-1.4 * (dx**2 + dy**2)))[..., None]


def overlap(x: int, y: int, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a patch at (x, y) lies in the scene, and which part of the patch that is; both empty when it lies outside."""
    x0, y0 = min(max(x, 0), WIDTH), min(max(y, 0), HEIGHT)
    x1, y1 = max(min(x + width, WIDTH), x0), max(min(y + height, HEIGHT), y0)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
