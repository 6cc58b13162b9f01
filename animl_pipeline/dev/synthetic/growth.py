"""What stands on the ground of a camera place: rocks, trunks, shrubs and grass, in bands from far to near."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from animl_pipeline.dev.synthetic.bodies import BODY, Colour, Light, Pixels, Stroke, draw_body, fractal
from animl_pipeline.dev.synthetic.location import GROUNDS, HEIGHT, WIDTH, Band, PathOrUrl, cast_shadow, overlap

BANDS = 6
Draw = ImageDraw.ImageDraw
LEAVES: tuple[Colour, ...] = ((78, 88, 54), (96, 100, 70), (66, 80, 52), (112, 106, 74), (88, 96, 82))


def grow_bands(location: PathOrUrl, horizon: float, backdrop: Pixels, rng: np.random.Generator) -> list[Band]:
    """Rocks, trunks, shrubs and grass, in bands from far to near. Their shadows are cast on ``backdrop``."""
    start = max(horizon + 10, 0.0)
    edges = start + (HEIGHT + 34 - start) * (np.arange(BANDS + 1) / BANDS) ** 1.15
    noise = fractal(rng, 256, 256, ((40, 40), (100, 100), (220, 220)), 0.9)
    bark = fractal(rng, 200, 500, ((90, 22), (150, 60)), 0.8)
    bands = []
    for i in range(BANDS):
        low, high = float(edges[i]), float(edges[i + 1])
        rgb, cover = np.zeros((HEIGHT, WIDTH, 3), np.float32), np.zeros((HEIGHT, WIDTH), np.float32)
        for _ in range(_share(location.rocks, i, rng)):
            _rock(rgb, cover, backdrop, rng.uniform(low, high), horizon, noise, location, rng)
        for _ in range(location.trunks if i in {1, 2} else 0):
            _trunk(rgb, cover, backdrop, rng.uniform(low, high), horizon, bark, location, rng)
        plants = _plants(location, low, high, horizon, backdrop, _share(location.shrubs, i, rng), rng)
        rgb = plants[..., :3] + rgb * (1 - plants[..., 3:])
        cover = plants[..., 3] + cover * (1 - plants[..., 3])
        bands.append(Band((low + high) / 2, rgb, cover))
    return bands


def _share(total: int, band: int, rng: np.random.Generator) -> int:
    """How many of ``total`` things stand in a band: few in the nearest two, where they would hide everything."""
    return int(rng.poisson(total * (0.52, 0.24, 0.12, 0.05, 0.02, 0.04)[band]))


def _rock(
    rgb: Pixels, cover: Pixels, backdrop: Pixels, foot: float, horizon: float, noise: Pixels, location: PathOrUrl, rng: np.random.Generator
) -> None:
    size = 64 * rng.uniform(0.35, 1.2) * (foot - horizon) / (HEIGHT - horizon)
    tone = float(rng.uniform(165, 215))
    grey: Colour = (tone, tone * 0.96, tone * 0.90)
    flat = rng.uniform(0.3, 0.55)
    strokes = [
        Stroke(x - 0.2, 0.12 * flat, x + 0.25, 0.30 * flat + rng.uniform(0, 0.18), rng.uniform(0.18, 0.42), rng.uniform(0.10, 0.30), grey, grey)
        for x in rng.uniform(-0.6, 0.6, 3)
    ]
    _stand(rgb, cover, backdrop, strokes, size, (rng.uniform(0, WIDTH), foot), noise, location, fuzz=0.5)


def _trunk(
    rgb: Pixels, cover: Pixels, backdrop: Pixels, foot: float, horizon: float, noise: Pixels, location: PathOrUrl, rng: np.random.Generator
) -> None:
    size = 110 * rng.uniform(0.7, 1.2) * max((foot - horizon) / (HEIGHT - horizon), 0.25)
    tone = float(rng.uniform(74, 112))
    bark: Colour = (tone, tone * 0.93, tone * 0.84)
    lean, high = rng.uniform(-0.5, 0.5), (foot + 40) / size
    strokes = [
        Stroke(0, 0.05, lean * 0.5, high * 0.5, 0.28, 0.2, bark, bark), Stroke(lean * 0.5, high * 0.5, lean * 1.3, high, 0.2, 0.15, bark, bark),
        Stroke(-0.12, 0.03, -0.42, 0.0, 0.16, 0.05, bark, bark), Stroke(0.12, 0.03, 0.40, 0.0, 0.15, 0.05, bark, bark),
        Stroke(lean * 0.35, high * 0.35, lean * 0.35 + rng.choice([-1.2, 1.2]), high * 0.62, 0.13, 0.06, bark, bark),
    ]  # fmt: skip
    _stand(rgb, cover, backdrop, strokes, size, (rng.choice([rng.uniform(0, 170), rng.uniform(470, 640)]), foot), noise, location, fuzz=1.2)


def _stand(
    rgb: Pixels,
    cover: Pixels,
    backdrop: Pixels,
    strokes: list[Stroke],
    size: float,
    at: tuple[float, float],
    noise: Pixels,
    location: PathOrUrl,
    *,
    fuzz: float,
) -> None:
    """Put a solid thing into a band, with its shadow on the ground."""
    light = Light(location.sun, -0.72, math.sqrt(max(1 - location.sun**2 - 0.72**2, 0.05)), 0.5)
    sprite = draw_body([s._replace(layer=BODY) for s in strokes], size, light, noise, fuzz=fuzz, melt=0.06)
    cast_shadow(backdrop, at, 0.75 * size, location.sun, 0.4)
    x, y = round(at[0]) + sprite.left, round(at[1]) + sprite.top
    target, source = overlap(x, y, *sprite.cover.shape)
    alpha = sprite.cover[source]
    rgb[target] = sprite.rgb[source] * alpha[..., None] + rgb[target] * (1 - alpha[..., None])
    cover[target] = alpha + cover[target] * (1 - alpha)


def _plants(location: PathOrUrl, low: float, high: float, horizon: float, backdrop: Pixels, shrubs: int, rng: np.random.Generator) -> Pixels:
    """Shrubs and grass of a band as premultiplied RGBA, colours 0-255 and cover 0-1; drawn twice as large for smooth edges."""
    layer = Image.new("RGBA", (2 * WIDTH, 2 * HEIGHT))
    pen = ImageDraw.Draw(layer)
    for foot in np.sort(rng.uniform(low, high, shrubs)):
        _shrub(pen, backdrop, float(foot), horizon, location, rng)
    _litter(pen, low, high, horizon, location, rng)
    _grass(pen, low, high, horizon, location, rng)
    small = np.asarray(layer.reduce(2).filter(ImageFilter.GaussianBlur(0.5)).convert("RGBa"), np.float32)
    return np.concatenate([small[..., :3], small[..., 3:] / 255], axis=-1)


def _shrub(pen: Draw, backdrop: Pixels, foot: float, horizon: float, location: PathOrUrl, rng: np.random.Generator) -> None:
    """Leaves in a dome, darker inside and below, lighter towards the sun."""
    near = (foot - horizon) / (HEIGHT - horizon)
    radius = 95 * near * rng.uniform(0.5, 1.15)
    x = rng.uniform(-20, WIDTH + 20)
    base = np.asarray(LEAVES[int(rng.integers(len(LEAVES)))], np.float32) * rng.uniform(0.85, 1.15)
    cast_shadow(backdrop, (x, foot), radius, location.sun, 0.32)
    count = int(90 + 9 * radius)
    angle, out = rng.uniform(0, math.pi, count), np.sqrt(rng.uniform(0.02, 1, count))
    lumps = 1 + 0.22 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.12 * np.sin(7 * angle)
    dx, dy = np.cos(angle) * out * lumps * radius, np.sin(angle) * out * lumps * radius * 0.7
    light = 0.58 + 0.35 * dy / radius + 0.22 * location.sun * dx / radius + 0.18 * out + rng.normal(0, 0.10, count)
    leaf = np.clip(rng.uniform(0.03, 0.07, count) * radius, 1.2, 5)
    for i in np.argsort(out):
        tone = tuple(int(v) for v in np.clip(base * light[i], 0, 255))
        cx, cy, r = 2 * (x + dx[i]), 2 * (foot - dy[i] + 2), 2 * leaf[i]
        pen.ellipse((cx - r, cy - 0.6 * r, cx + r, cy + 0.6 * r), fill=(*tone, 255))


def _litter(pen: Draw, low: float, high: float, horizon: float, location: PathOrUrl, rng: np.random.Generator) -> None:
    """Pebbles, dead leaves and twigs on the ground."""
    soil, patch, _, dry = GROUNDS[location.ground]
    for foot in np.sort(rng.uniform(low, high, 90)):
        near = max((foot - horizon) / (HEIGHT - horizon), 0.06)
        base = (soil, patch, dry)[int(rng.integers(3))]
        colour = tuple(int(c * t) for c, t in zip(base, np.full(3, rng.uniform(0.55, 1.2)), strict=True))
        x, y, size = 2 * rng.uniform(0, WIDTH), 2 * foot, 9 * near * rng.uniform(0.3, 1.3)
        if rng.uniform() < 0.6:
            pen.ellipse((x - size, y - 0.45 * size, x + size, y + 0.45 * size), fill=(*colour, 255))
        else:
            dx, dy = 3.2 * size * rng.uniform(-1, 1), 1.1 * size * rng.uniform(-1, 1)
            pen.line((x - dx, y - dy, x + dx, y + dy), fill=(*colour, 255), width=max(1, round(3 * near)))


def _grass(pen: Draw, low: float, high: float, horizon: float, location: PathOrUrl, rng: np.random.Generator) -> None:
    """Blades in tufts, from far to near."""
    _, _, green, dry = GROUNDS[location.ground]
    count = location.blades // BANDS
    tufts = rng.uniform(-10, WIDTH + 10, max(count // 14, 1))
    feet = np.sort(rng.uniform(low, high, count))
    xs = tufts[rng.integers(0, len(tufts), count)] + rng.normal(0, 9, count)
    mix, tone = rng.uniform(0, 1, count), rng.uniform(0.72, 1.18, count)
    size, lean = rng.uniform(0.35, 1.15, count), rng.normal(0, 0.33, count)
    for i in range(count):
        near = max((feet[i] - horizon) / (HEIGHT - horizon), 0.06)
        length = location.grass * near * size[i]
        colour = tuple(int((a * mix[i] + b * (1 - mix[i])) * tone[i]) for a, b in zip(green, dry, strict=True))
        x, y, thick = 2 * xs[i], 2 * feet[i], max(1.0, 2.6 * near)
        mx, my = x + lean[i] * length, y - 1.2 * length
        tx, ty = x + 2.6 * lean[i] * length, y - 2 * length * (1 - 0.3 * abs(lean[i]))
        pen.polygon([(x - thick, y), (x + thick, y), (mx + 0.6 * thick, my), (tx, ty), (mx - 0.6 * thick, my)], fill=(*colour, 255))
