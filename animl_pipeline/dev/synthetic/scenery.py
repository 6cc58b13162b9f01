"""The camera places of the island: their ground, hills, rocks, shrubs and grass, by day and in the flash at night.

A scene is a backdrop and a few bands of plants and rocks, each with the line on which it stands, so that an animal walks
behind what is nearer than its feet and before what is farther.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.dev.synthetic.bodies import Pixels, fractal
from animl_pipeline.dev.synthetic.growth import grow_bands
from animl_pipeline.dev.synthetic.location import GROUNDS, HEIGHT, WIDTH, Band, PathOrUrl


class Scene(NamedTuple):
    """A place as painted: the whole view and its bands, in one light. ``horizon`` in pixels."""

    location: PathOrUrl
    night: bool
    horizon: float
    model_input: Pixels
    bands: tuple[Band, ...]


def paint_location(location: PathOrUrl, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """A place by day and at night."""
    horizon = location.horizon * HEIGHT
    backdrop = _backdrop(location, horizon, rng)
    bands = grow_bands(location, horizon, backdrop, rng)
    day = _assemble(location, horizon, backdrop, bands, night=False)
    flash = [Band(b.foot, _infrared(b.rgb) * _flash(horizon, b.foot) * _beam()[..., None], b.cover) for b in bands]
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    dark = _infrared(backdrop) * (_flash_rows(horizon, rows) * _beam())[..., None]
    return day, _assemble(location, horizon, dark, flash, night=True)


def flash_at(scene: Scene, foot: float) -> float:
    """How much of the flash reaches what stands on the line ``foot``, 0-1."""
    return float(_flash(scene.horizon, foot))


def nearness(scene: Scene, foot: float) -> float:
    """How large a thing on the line ``foot`` looks against one at the near edge, 0-1."""
    return max((foot - scene.horizon) / (HEIGHT - scene.horizon), 0.05)


def _assemble(location: PathOrUrl, horizon: float, backdrop: Pixels, bands: list[Band], *, night: bool) -> Scene:
    model_input = backdrop
    for band in bands:
        model_input = band.rgb + model_input * (1 - band.cover[..., None])
    return Scene(location, night, horizon, np.asarray(model_input, np.float32), tuple(bands))


def _backdrop(location: PathOrUrl, horizon: float, rng: np.random.Generator) -> Pixels:
    """Sky, sea, hills and ground."""
    rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
    columns = np.arange(WIDTH, dtype=np.float32)[None, :]
    level = horizon + (columns - WIDTH / 2) * math.tan(math.radians(location.roll))
    image = _ground(location, rows, columns, level, rng)
    if horizon > 8:
        image = np.where((rows < level)[..., None], _sky(location, horizon, rows, rng), image)
        for layer in range(location.hills, 0, -1):
            image = _hill(image, location, layer, rows, level, rng)
    return np.asarray(image, np.float32)


def _sky(location: PathOrUrl, horizon: float, rows: Pixels, rng: np.random.Generator) -> Pixels:
    share = np.clip(rows / max(horizon, 1), 0, 1)[..., None]
    clouds = np.clip(fractal(rng, WIDTH, HEIGHT, ((5, 6), (11, 14), (23, 30))) * 0.5 - 0.1, 0, 1)[..., None]
    sky = np.asarray((168, 188, 210), np.float32) * (1 - share) + np.asarray((222, 224, 220), np.float32) * share
    sky = sky + (np.asarray((238, 238, 236), np.float32) - sky) * clouds * 0.8
    if location.sea:
        waves = fractal(rng, WIDTH, HEIGHT, ((16, 200), (60, 240))) * 4
        sea = np.asarray((104, 128, 142), np.float32) + waves[..., None]
        sky = np.where((rows > horizon * 0.62)[..., None], sea, sky)
    return np.asarray(sky, np.float32)


def _hill(image: Pixels, location: PathOrUrl, layer: int, rows: Pixels, level: Pixels, rng: np.random.Generator) -> Pixels:
    """A ridge with scrub on it; the farther, the paler."""
    ridge = fractal(rng, WIDTH, 1, ((4 + layer, 1), (9, 1), (19, 1), (60, 1)), 0.45)[0]
    top = level - (16 + 20 * layer) * (0.7 + 0.35 * ridge[None, :])
    _, _, grass, dry = GROUNDS[location.ground]
    scrub = np.clip(fractal(rng, WIDTH, HEIGHT, ((26, 40), (70, 90), (160, 140)), 0.8) * 0.6, -1, 1)[..., None]
    colour = np.asarray(dry, np.float32) * 0.5 + np.asarray(grass, np.float32) * 0.5 + scrub * np.asarray((-22, -14, -20), np.float32)
    haze = min(0.18 + 0.2 * layer, 0.75)
    colour = colour * (1 - haze) + np.asarray((198, 206, 212), np.float32) * haze
    edge = np.clip(rows - top, 0, 1) * np.clip(level + 2 - rows, 0, 1)
    return np.asarray(image + (colour - image) * edge[..., None], np.float32)


def _ground(location: PathOrUrl, rows: Pixels, columns: Pixels, level: Pixels, rng: np.random.Generator) -> Pixels:
    """The ground in perspective: patches, grain, a path, and shade from what is behind the camera."""
    soil, patch, _, dry = (np.asarray(c, np.float32) for c in GROUNDS[location.ground])
    depth = np.maximum(rows - level, 1.0)
    reach = float(HEIGHT - location.horizon * HEIGHT)
    texture = fractal(rng, 512, 512, ((9, 9), (24, 24), (64, 64), (150, 150), (400, 400)), 0.78)
    across = ((columns - WIDTH / 2) * (reach / depth) * 0.55).astype(np.int64)
    away = (600 * (reach / depth) * 0.55).astype(np.int64)
    near = np.clip(depth / (0.5 * reach), 0.12, 1)
    grain = texture[_mirrored(away), _mirrored(across)] * near
    fine = fractal(rng, WIDTH, HEIGHT, ((320, 330), (560, 440)), 0.9) * (0.35 + 0.65 * near)
    share = np.clip(0.5 + 0.42 * grain, 0, 1)[..., None]
    colour = soil * share + patch * (1 - share)
    colour = colour + (dry - colour) * np.clip(1 - near * 1.1, 0, 0.5)[..., None]
    colour = colour * (1 + 0.085 * fine)[..., None]
    if location.path:
        bend = WIDTH * (0.42 + 0.10 * np.sin(depth / reach * 2.4 + 1))
        edge = np.abs(columns - bend) - depth * 0.38 * (1 + 0.10 * grain)
        bare = np.clip(0.5 - edge / (6 + 0.08 * depth), 0, 1)[..., None] * 0.75
        colour = colour + (soil * 1.1 + 8 - colour) * bare
    scrub = np.clip(fractal(rng, WIDTH, HEIGHT, ((40, 160), (120, 300))) - 0.25, 0, 1) * np.exp(
        -depth / 16
    )  # far plants, too small to be drawn singly
    colour = colour + (np.asarray((96, 102, 76), np.float32) - colour) * scrub[..., None]
    colour = colour + (np.asarray((186, 190, 182), np.float32) - colour) * (0.42 * np.exp(-depth / 22))[..., None]
    dapple = fractal(rng, WIDTH, HEIGHT, ((5, 7), (12, 18)))
    return np.asarray(colour * (1 + 0.07 * dapple)[..., None] * (0.9 + 0.12 * near)[..., None], np.float32)


def _mirrored(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions in a texture of 512 that is continued by its mirror image, so that no seam shows."""
    wrapped = index % 1024
    return np.where(wrapped < 512, wrapped, 1023 - wrapped)


def _flash(horizon: float, foot: float) -> float:
    """The flash weakens with distance, which grows as the line on the ground nears the horizon."""
    near = max((foot - horizon) / (HEIGHT - horizon), 0.02)
    return float(1.05 * near**1.15 / (near**1.15 + 0.16))


def _flash_rows(horizon: float, rows: Pixels) -> Pixels:
    near = np.clip((rows - horizon) / (HEIGHT - horizon), 0.0, None)
    return np.asarray(1.05 * near**1.15 / (near**1.15 + 0.16), np.float32)


def _beam() -> NDArray[np.float32]:
    """The flash lights the middle more than the corners."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    away = ((columns - WIDTH / 2) / (0.72 * WIDTH)) ** 2 + ((rows - 0.55 * HEIGHT) / (0.9 * HEIGHT)) ** 2
    return np.asarray(1.0 / (1 + 1.5 * away**1.2), np.float32)


def _infrared(rgb: Pixels) -> Pixels:
    """What an infrared flash sees: no colour, and plants brighter than soil."""
    grey = 0.30 * rgb[..., 0] + 0.50 * rgb[..., 1] + 0.20 * rgb[..., 2]
    plants = np.clip(rgb[..., 1] - 0.5 * (rgb[..., 0] + rgb[..., 2]), 0, 40)
    return np.repeat((grey * 0.98 + 2.8 * plants)[..., None], 3, axis=-1).astype(np.float32)
