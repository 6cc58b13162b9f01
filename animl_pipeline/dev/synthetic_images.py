"""Draws camera-trap images of simple animals: what the synthetic data set shows. Needs Pillow and numpy only.

A location has a fixed background by day and by night. An animal is a handful of ellipses and polygons in the proportions and
colours of its species. The same random generator gives the same image with the same Pillow and numpy.
"""

from __future__ import annotations

import io
from datetime import datetime
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT, FOOTER = 640, 480, 24
"""Size of an image in pixels; the footer at its lower edge holds the camera's text."""
SCENE_HEIGHT = HEIGHT - FOOTER
SUPERSAMPLING = 3
"""Animals are drawn larger by this factor and reduced, so that their outlines are smooth."""

GROUNDS = ((166, 146, 104), (112, 108, 70), (160, 150, 130), (112, 92, 70), (186, 170, 140), (150, 112, 86))
"""Colours of dry grass, green grass, a dry river bed, leaf litter, sand and red soil."""

Pixels = NDArray[np.float32]
Colour = tuple[int, int, int]
PixelBox = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


class Species(NamedTuple):
    """How a species looks: ``length`` of the body in pixels when near, colours, share of its visits at night."""

    length: int
    coat: Colour
    mark: Colour
    at_night: float


SPECIES = {
    "fox": Species(150, (178, 112, 58), (226, 204, 170), 0.5),
    "bird": Species(74, (58, 84, 148), (210, 206, 196), 0.15),
    "skunk": Species(120, (30, 28, 30), (238, 238, 232), 0.6),
    "rodent": Species(66, (128, 100, 74), (186, 164, 136), 0.7),
    "lizard": Species(96, (112, 118, 66), (156, 158, 98), 0.2),
}


class Scene(NamedTuple):
    """The background of a location by day or by night: float32 [SCENE_HEIGHT, WIDTH, 3], 0-255."""

    pixels: Pixels
    night: bool


def draw_scenes(rng: np.random.Generator) -> tuple[Scene, Scene]:
    """A location's background by day and by night: ground, sky, shrubs and rocks."""
    horizon = int(SCENE_HEIGHT * rng.uniform(0.1, 0.35))
    ground = rng.uniform(0.8, 1.2) * np.asarray(GROUNDS[int(rng.integers(len(GROUNDS)))], np.float32)
    texture = 0.5 * _noise(rng, 8) + 0.3 * _noise(rng, 40) + 0.2 * _noise(rng, 160)
    day = ground * (0.75 + 0.5 * texture[..., None])
    sky = np.asarray((176, 196, 214), np.float32) + 24 * _noise(rng, 4)[:horizon, :, None]
    day[:horizon] = sky
    image = Image.fromarray(day.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(25, 45))):
        foot = float(rng.uniform(horizon - 4, SCENE_HEIGHT))
        size = (0.25 + 0.75 * (foot - horizon) / (SCENE_HEIGHT - horizon)) * rng.uniform(12, 46)
        _draw_plant_or_rock(pen, float(rng.uniform(0, WIDTH)), foot, size, rng)
    day = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), np.float32) * (0.9 + 0.2 * _noise(rng, 120)[..., None])
    return Scene(day, night=False), Scene(_flash_lit(day, horizon), night=True)


def _draw_plant_or_rock(pen: ImageDraw.ImageDraw, x: float, foot: float, size: float, rng: np.random.Generator) -> None:
    if rng.uniform() < 0.3:
        shade = int(rng.integers(90, 150))
        pen.ellipse((x - size, foot - size * 0.8, x + size, foot), fill=(shade, shade - 6, shade - 14))
        return
    for _ in range(14):
        dx, dy, r = rng.normal(0, size * 0.5), rng.uniform(0, size * 1.3), size * rng.uniform(0.15, 0.35)
        green = int(rng.integers(60, 120))
        pen.ellipse((x + dx - r, foot - dy - r, x + dx + r, foot - dy + r), fill=(green - 15, green, green // 2))


def _flash_lit(day: Pixels, horizon: int) -> Pixels:
    """The scene in infrared light: grey, bright near the camera and in the middle, the sky black."""
    rows, columns = np.mgrid[0:SCENE_HEIGHT, 0:WIDTH].astype(np.float32)
    reach = np.clip((rows - horizon) / (SCENE_HEIGHT - horizon), 0, 1) ** 0.7
    light = reach * np.exp(-(((columns - WIDTH / 2) / (0.6 * WIDTH)) ** 2))
    return np.repeat((day.mean(axis=-1) * (0.08 + 0.9 * light))[..., None], 3, axis=-1).astype(np.float32)


def _noise(rng: np.random.Generator, cells: int) -> Pixels:
    """Smooth noise, 0-1, with so many cells along the width: float32 [SCENE_HEIGHT, WIDTH]."""
    small = rng.uniform(0, 255, (max(2, cells * SCENE_HEIGHT // WIDTH), cells)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((WIDTH, SCENE_HEIGHT), Image.Resampling.BICUBIC), np.float32) / np.float32(255)


class Animal(NamedTuple):
    """An animal in a scene: where its feet are, how long it is in pixels, which way it looks (1 right, -1 left), its pose 0-1."""

    species: str
    x: float
    foot: float
    length: float
    facing: int
    pose: float


def place_animal(species: str, rng: np.random.Generator) -> Animal:
    """An animal of a species somewhere in a scene; it is larger the nearer it is."""
    foot = SCENE_HEIGHT * rng.uniform(0.5, 0.95)
    length = SPECIES[species].length * (0.3 + 0.8 * foot / SCENE_HEIGHT) * rng.uniform(0.8, 1.25)
    return Animal(species, WIDTH * rng.uniform(0.15, 0.85), foot, length, int(rng.choice([-1, 1])), float(rng.uniform()))


def step_forward(animal: Animal, rng: np.random.Generator) -> Animal:
    """The animal a second later."""
    x = animal.x + animal.facing * animal.length * rng.uniform(0, 0.5)
    return animal._replace(x=x, pose=float((animal.pose + rng.uniform(0.1, 0.4)) % 1))


def draw_animal(canvas: Pixels, animal: Animal, night: bool) -> PixelBox | None:
    """Draw an animal into a scene's pixels; its box comes back, None where too little of it lies inside the image."""
    sprite = _sprite(animal)
    left, top = round(animal.x - sprite.width / 2), round(animal.foot - sprite.height)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + sprite.width, WIDTH), min(top + sprite.height, SCENE_HEIGHT)
    if x1 - x0 < 0.4 * sprite.width or y1 - y0 < 0.4 * sprite.height:
        return None
    patch = np.asarray(sprite, np.float32)[y0 - top : y1 - top, x0 - left : x1 - left]
    colours, cover = patch[..., :3], patch[..., 3:] / 255
    if night:
        colours = np.repeat(colours.mean(axis=-1, keepdims=True) * 0.9 + 20, 3, axis=-1)
    target = canvas[y0:y1, x0:x1]
    target += (colours - target) * cover
    rows, columns = np.nonzero(cover[..., 0] > 0.5)
    if not len(rows):
        return None
    x, y = x0 + int(columns.min()), y0 + int(rows.min())
    return x, y, x0 + int(columns.max()) + 1 - x, y0 + int(rows.max()) + 1 - y


def _sprite(animal: Animal) -> Image.Image:
    """The animal alone, looking the right way, cut to its outline: RGBA."""
    n = max(12, round(animal.length * SUPERSAMPLING))
    image = Image.new("RGBA", (2 * n, 2 * n), (0, 0, 0, 0))
    _PARTS[animal.species](ImageDraw.Draw(image), n, animal.pose, SPECIES[animal.species])
    image = image.crop(image.getbbox())
    if animal.facing < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.resize((max(1, image.width // SUPERSAMPLING), max(1, image.height // SUPERSAMPLING)), Image.Resampling.LANCZOS)


def _ellipse(pen: ImageDraw.ImageDraw, n: int, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
    """An ellipse around (x, y); all lengths in shares of the body's length, from the middle of the canvas, y downwards."""
    pen.ellipse(((1 + x - rx) * n, (1 + y - ry) * n, (1 + x + rx) * n, (1 + y + ry) * n), fill=fill)


def _line(pen: ImageDraw.ImageDraw, n: int, points: list[tuple[float, float]], width: float, fill: Colour) -> None:
    pen.line([((1 + x) * n, (1 + y) * n) for x, y in points], fill=fill, width=max(2, round(width * n)), joint="curve")


def _legs(pen: ImageDraw.ImageDraw, n: int, xs: tuple[float, ...], top: float, bottom: float, width: float, pose: float, fill: Colour) -> None:
    for i, x in enumerate(xs):
        swing = 0.09 * np.sin(2 * np.pi * (pose + i / len(xs)))
        _line(pen, n, [(x, top), (x + swing, bottom)], width, fill)


def _draw_fox(pen: ImageDraw.ImageDraw, n: int, pose: float, look: Species) -> None:
    dark = (90, 62, 44)
    _legs(pen, n, (-0.24, -0.15, 0.2, 0.29), 0.05, 0.4, 0.055, pose, dark)
    _line(pen, n, [(-0.35, -0.02), (-0.62, 0.08), (-0.8, 0.16)], 0.13, look.coat)
    _ellipse(pen, n, -0.8, 0.16, 0.08, 0.06, look.mark)
    _ellipse(pen, n, 0, 0, 0.38, 0.15, look.coat)
    _ellipse(pen, n, 0.05, 0.09, 0.25, 0.06, look.mark)
    head = -0.14 + 0.12 * pose
    _ellipse(pen, n, 0.43, head, 0.12, 0.1, look.coat)
    pen.polygon([((1 + x) * n, (1 + y + head) * n) for x, y in ((0.5, -0.02), (0.66, 0.05), (0.5, 0.08))], fill=look.mark)
    for x in (0.36, 0.46):
        pen.polygon([((1 + a) * n, (1 + b + head) * n) for a, b in ((x - 0.04, -0.06), (x, -0.22), (x + 0.05, -0.06))], fill=dark)


def _draw_bird(pen: ImageDraw.ImageDraw, n: int, pose: float, look: Species) -> None:
    _legs(pen, n, (-0.03, 0.06), 0.1, 0.45, 0.025, pose * 0.3, (70, 60, 50))
    pen.polygon([((1 + x) * n, (1 + y) * n) for x, y in ((-0.2, -0.05), (-0.75, 0.12), (-0.72, 0.22), (-0.15, 0.14))], fill=look.coat)
    _ellipse(pen, n, 0, 0, 0.32, 0.22, look.coat)
    _ellipse(pen, n, 0.08, 0.08, 0.2, 0.13, look.mark)
    head = -0.26 + 0.1 * pose
    _ellipse(pen, n, 0.28, head, 0.15, 0.14, look.coat)
    pen.polygon([((1 + x) * n, (1 + y + head) * n) for x, y in ((0.4, -0.05), (0.62, 0.02), (0.4, 0.06))], fill=(60, 54, 46))


def _draw_skunk(pen: ImageDraw.ImageDraw, n: int, pose: float, look: Species) -> None:
    _legs(pen, n, (-0.26, -0.14, 0.2, 0.3), 0.1, 0.34, 0.08, pose, look.coat)
    lift = 0.2 + 0.35 * pose
    _line(pen, n, [(-0.34, -0.02), (-0.55, -0.1 - lift / 2), (-0.62, -0.15 - lift)], 0.24, look.coat)
    _line(pen, n, [(-0.38, -0.06), (-0.56, -0.14 - lift / 2), (-0.62, -0.18 - lift)], 0.09, look.mark)
    _ellipse(pen, n, 0, 0.02, 0.4, 0.2, look.coat)
    _line(pen, n, [(-0.36, -0.08), (0, -0.14), (0.38, -0.06)], 0.07, look.mark)
    _ellipse(pen, n, 0.44, 0.05, 0.14, 0.11, look.coat)
    _line(pen, n, [(0.4, -0.03), (0.56, 0.05)], 0.03, look.mark)


def _draw_rodent(pen: ImageDraw.ImageDraw, n: int, pose: float, look: Species) -> None:
    _line(pen, n, [(-0.3, 0.2), (-0.6, 0.24), (-0.85, 0.12 + 0.16 * pose)], 0.035, look.mark)
    _legs(pen, n, (-0.15, 0.22), 0.15, 0.32, 0.06, pose, look.mark)
    _ellipse(pen, n, -0.05, 0.02, 0.34, 0.25, look.coat)
    _ellipse(pen, n, 0.3, 0.08, 0.17, 0.14, look.coat)
    _ellipse(pen, n, 0.24, -0.08, 0.09, 0.1, look.mark)
    _ellipse(pen, n, 0.37, 0.05, 0.025, 0.025, (20, 18, 18))


def _draw_lizard(pen: ImageDraw.ImageDraw, n: int, pose: float, look: Species) -> None:
    bend = 0.1 * (pose - 0.5)
    _line(pen, n, [(-0.25, 0.05), (-0.6, 0.1 + bend), (-0.95, 0.04 - bend)], 0.06, look.coat)
    for x in (-0.18, 0.24):
        _line(pen, n, [(x - 0.12, 0.2), (x, 0.04), (x + 0.12, -0.08)], 0.04, look.mark)
    _ellipse(pen, n, 0, 0.05, 0.34, 0.09, look.coat)
    _line(pen, n, [(-0.28, 0.03), (0.3, 0.03)], 0.025, look.mark)
    _ellipse(pen, n, 0.42, 0.03 + bend, 0.13, 0.075, look.coat)


_PARTS = {"fox": _draw_fox, "bird": _draw_bird, "skunk": _draw_skunk, "rodent": _draw_rodent, "lizard": _draw_lizard}


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(14)


def encode_image(canvas: Pixels, night: bool, gain: float, camera: str, taken: datetime, rng: np.random.Generator) -> bytes:
    """The scene as a camera writes it: exposure, sensor noise, a footer with its name and the time, JPEG."""
    pixels = canvas * np.float32(gain)
    pixels += np.float32(5 if night else 2.5) * rng.standard_normal((SCENE_HEIGHT, WIDTH, 1), np.float32)
    full = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    full[:SCENE_HEIGHT] = np.clip(pixels, 0, 255, out=pixels)
    image = Image.fromarray(full)
    pen = ImageDraw.Draw(image)
    pen.text((10, SCENE_HEIGHT + 3), f"{camera.upper()}    {taken:%m-%d-%Y   %H:%M:%S}", fill=(235, 235, 235), font=_font())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=76)
    return buffer.getvalue()
