"""Solid bodies drawn from round strokes: the brush for animals, rocks and trunks.

A body is a list of strokes, each a line that is thicker at one end than at the other. Strokes of one layer melt into each
other (a smooth union of their signed distances), get rounded shading from the surface that they suggest, and fur from
streaked noise. The distance gives an edge of one soft pixel, so nothing has to be drawn larger than it is shown.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]
Colour = tuple[float, float, float]

FAR, BODY, NEAR, TOP = range(4)
"""Layers from back to front: far legs, trunk, near legs, what lies on top of all."""


class Stroke(NamedTuple):
    """A line from (ax, ay) to (bx, by) with radii ra and rb, in body lengths; x towards the head, y upwards from the ground.

    ``mark`` strokes only colour what is under them and add no shape; ``flat`` ones are not shaded (eyes, noses).
    """

    ax: float
    ay: float
    bx: float
    by: float
    ra: float
    rb: float
    back: Colour
    belly: Colour
    layer: int = BODY
    mark: bool = False
    flat: bool = False


class Light(NamedTuple):
    """Where light comes from (x right, y down, z to the camera) and how much there is without it."""

    x: float
    y: float
    z: float
    ambient: float


class Sprite(NamedTuple):
    """Colours 0-255 and cover 0-1 of a drawn body, and where its upper left corner lies relative to its foot, in pixels."""

    rgb: Pixels
    cover: Pixels
    left: int
    top: int


def fractal(rng: np.random.Generator, width: int, height: int, cells: tuple[tuple[int, int], ...], fade: float = 0.6) -> Pixels:
    """Smooth noise [height, width] of mean 0 and spread 1: random grids of ``cells`` (across, down), each weaker by ``fade``."""
    total = np.zeros((height, width), np.float32)
    for octave, (across, down) in enumerate(cells):
        grid = rng.standard_normal((down, across)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), np.float32) * fade**octave
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), np.float32)


def draw_body(strokes: list[Stroke], scale: float, light: Light, noise: Pixels, *, fuzz: float = 1.0, melt: float = 0.035) -> Sprite:
    """The body as a sprite.

    Args:
        strokes: in body lengths.
        scale: pixels of one body length.
        light: day or flash.
        noise: a texture as large as the sprite or larger, of mean 0 and spread 1.
        fuzz: how many pixels the fur breaks the outline.
        melt: over how many body lengths neighbouring strokes melt into each other.
    """
    placed = [s._replace(ax=s.ax * scale, bx=s.bx * scale, ay=-s.ay * scale, by=-s.by * scale, ra=s.ra * scale, rb=s.rb * scale) for s in strokes]
    left, top, width, height = _extent(placed)
    texture = _tile(noise, height, width)
    rgb, cover = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    for layer in (FAR, BODY, NEAR, TOP):
        shapes = [s for s in placed if s.layer == layer and not s.mark]
        if not shapes:
            continue
        canvas = _Canvas(left, top, width, height, max(melt * scale, 0.6))
        for stroke in shapes:
            canvas.add(stroke)
        for stroke in (s for s in placed if s.layer == layer and s.mark):
            canvas.paint(stroke, texture)
        painted, alpha = canvas.finish(light, texture, fuzz, 0.62 if layer == FAR else 1.0)
        rgb += (painted - rgb) * alpha[..., None]
        cover = cover + alpha * (1 - cover)
    return Sprite(rgb, cover, left, top)


class _Canvas:
    """One layer under work: sums over its strokes, weighted by how near each of them is."""

    def __init__(self, left: int, top: int, width: int, height: int, melt: float) -> None:
        self.left, self.top, self.melt = left, top, melt
        self.weight = np.full((height, width), 1e-12, np.float32)
        self.normal = np.zeros((height, width, 2), np.float32)
        self.colour = np.zeros((height, width, 3), np.float32)
        self.flat = np.zeros((height, width), np.float32)

    def add(self, stroke: Stroke) -> None:
        """Melt a stroke into the layer."""
        window, distance, towards = self._around(stroke, 4 * self.melt + 2)
        weight = np.exp(np.clip(-distance / self.melt, -20, 20))
        under = _smooth((towards[..., 1] + 0.15) / 0.75)[..., None]
        colour = np.asarray(stroke.back, np.float32) * (1 - under) + np.asarray(stroke.belly, np.float32) * under
        self.weight[window] += weight
        self.normal[window] += towards * weight[..., None]
        self.colour[window] += colour * weight[..., None]
        if stroke.flat:
            self.flat[window] += weight

    def paint(self, stroke: Stroke, texture: Pixels) -> None:
        """Colour what lies under a mark; its edge is ragged like fur."""
        window, distance, _ = self._around(stroke, 3)
        share = _smooth(0.5 - 0.5 * distance - 0.4 * texture[window])[..., None]
        weight = self.weight[window][..., None]
        self.colour[window] += (np.asarray(stroke.back, np.float32) * weight - self.colour[window]) * share

    def finish(self, light: Light, texture: Pixels, fuzz: float, dim: float) -> tuple[Pixels, Pixels]:
        """Colours and cover of the layer."""
        distance = -self.melt * np.log(self.weight)
        cover = np.clip(0.5 - distance - fuzz * texture * 0.45, 0, 1)
        nx, ny = self.normal[..., 0] / self.weight, self.normal[..., 1] / self.weight
        nz = np.sqrt(np.clip(1 - nx**2 - ny**2, 0, 1))
        lit = np.clip(nx * light.x + ny * light.y + nz * light.z, 0, None)
        shade = (light.ambient + (1 - light.ambient) * lit) * (1 - 0.22 * np.clip(ny, 0, 1))
        flat = np.clip(self.flat / self.weight, 0, 1)
        shade = (shade * (1 + 0.13 * texture) * (1 - flat) + flat) * dim
        return (self.colour / self.weight[..., None]) * shade[..., None], cover

    def _around(self, stroke: Stroke, pad: float) -> tuple[tuple[slice, slice], Pixels, Pixels]:
        """The window of a stroke, the signed distance to it, and the direction away from its core (length 1 at its edge)."""
        reach = max(stroke.ra, stroke.rb) + pad
        x0 = max(int(min(stroke.ax, stroke.bx) - reach) - self.left, 0)
        y0 = max(int(min(stroke.ay, stroke.by) - reach) - self.top, 0)
        x1, y1 = int(max(stroke.ax, stroke.bx) + reach) - self.left + 2, int(max(stroke.ay, stroke.by) + reach) - self.top + 2
        window = (slice(y0, min(y1, self.weight.shape[0])), slice(x0, min(x1, self.weight.shape[1])))
        rows, columns = self.weight[window].shape
        px = (np.arange(columns, dtype=np.float32) + (x0 + self.left))[None, :] - np.float32(stroke.ax)
        py = (np.arange(rows, dtype=np.float32) + (y0 + self.top))[:, None] - np.float32(stroke.ay)
        dx, dy = stroke.bx - stroke.ax, stroke.by - stroke.ay
        along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        radius = np.maximum(stroke.ra + along * (stroke.rb - stroke.ra), 0.35)
        away = np.stack([px - along * dx, py - along * dy], axis=-1).astype(np.float32)
        length = np.sqrt((away**2).sum(-1))
        towards = away / np.maximum(length, radius)[..., None]
        return window, np.asarray(length - radius, np.float32), np.asarray(towards, np.float32)


def _extent(placed: list[Stroke]) -> tuple[int, int, int, int]:
    """Left, top, width and height of all strokes with a border of three pixels."""
    radii = [max(s.ra, s.rb) + 3 for s in placed]
    left = int(min(min(s.ax, s.bx) - r for s, r in zip(placed, radii, strict=True)))
    top = int(min(min(s.ay, s.by) - r for s, r in zip(placed, radii, strict=True)))
    right = int(max(max(s.ax, s.bx) + r for s, r in zip(placed, radii, strict=True)))
    bottom = int(max(max(s.ay, s.by) + r for s, r in zip(placed, radii, strict=True)))
    return left, top, right - left + 1, bottom - top + 1


def _tile(noise: Pixels, height: int, width: int) -> Pixels:
    """``noise`` repeated, if need be, to cover height x width."""
    rows, columns = -(-height // noise.shape[0]), -(-width // noise.shape[1])
    return np.tile(noise, (rows, columns))[:height, :width]


def _smooth(values: Pixels) -> Pixels:
    """0 below 0, 1 above 1, an S between."""
    v = np.clip(values, 0, 1)
    return np.asarray(v * v * (3 - 2 * v), np.float32)
