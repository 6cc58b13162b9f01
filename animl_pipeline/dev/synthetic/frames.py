"""Bursts of pictures: animals walk through a scene, and a camera with its faults takes them."""

from __future__ import annotations

import io
import math
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from animl_pipeline.dev.synthetic.animals import KINDS, Pose, draw_pose, eye_of, strokes_of
from animl_pipeline.dev.synthetic.bodies import Light, Pixels, Sprite, draw_body, fractal
from animl_pipeline.dev.synthetic.island import FRAMES, Visit
from animl_pipeline.dev.synthetic.location import HEIGHT, WIDTH, cast_shadow, overlap
from animl_pipeline.dev.synthetic.scenery import Scene, flash_at, nearness

FOOTER = 24
"""Height of the strip below the scene, on which the camera writes."""
FULL_HEIGHT = HEIGHT + FOOTER
TRIES = 6
Corners = tuple[int, int, int, int]


class Seen(NamedTuple):
    """An animal in a picture: its kind and the box [x, y, w, h] in pixels around what can be seen of it."""

    kind: str
    bbox: Corners


class Frame(NamedTuple):
    """A drawn picture: the JPEG, when it was taken, and who is in it."""

    visit: Visit
    taken: datetime
    jpeg: bytes
    seen: tuple[Seen, ...]


class Actor(NamedTuple):
    """An animal somewhere in a scene; ``facing`` is 1 to the right, -1 to the left."""

    pose: Pose
    x: float
    foot: float
    size: float
    facing: int


class Grain(NamedTuple):
    """Textures that all pictures share: fur for animals, noise for the sensor."""

    fur: Pixels
    skin: Pixels
    sensor: Pixels


def make_grain(rng: np.random.Generator) -> Grain:
    """The shared textures."""
    fur = fractal(rng, 420, 320, ((70, 120), (160, 240), (400, 310)), 0.85)
    skin = fractal(rng, 420, 320, ((200, 160), (400, 310)), 0.9)
    sensor = fractal(rng, WIDTH, FULL_HEIGHT, ((420, 315), (640, 480)), 0.9)  # cameras smooth their noise, so it is a little coarse
    return Grain(fur, skin, sensor)


def draw_burst(visit: Visit, scene: Scene, grain: Grain, rng: np.random.Generator) -> list[Frame]:
    """The pictures of one visit."""
    look = _Look(scene, rng)
    actors: list[Actor] = []
    for kind in visit.kinds:
        actors.append(_enter(kind, scene, grain, actors, rng))
    paces = rng.choice([0.0, 0.35, 0.8], size=len(actors), p=[0.35, 0.35, 0.3])
    frames = []
    for number in range(FRAMES):
        img = scene.model_input.copy()
        ordered = sorted(actors, key=lambda a: a.foot)
        seen = [s for s in (_put(img, actor, scene, grain) for actor in ordered) if s is not None]
        taken = visit.taken + timedelta(seconds=number)
        frames.append(Frame(visit, taken, look.take(img, taken, grain, rng), tuple(seen)))
        actors = [_move(actor, float(pace), rng) for actor, pace in zip(actors, paces, strict=True)]
    return frames


def _enter(kind: str, scene: Scene, grain: Grain, others: list[Actor], rng: np.random.Generator) -> Actor:
    """An animal at a spot where enough of it can be seen: of a few spots by chance the first that will do, else the best."""
    best: tuple[float, Actor] | None = None
    pose = draw_pose(kind, rng)
    for _ in range(TRIES):
        actor = _somewhere(pose, scene, rng)
        crowded = any(abs(actor.x - other.x) < 1.4 * (actor.size + other.size) for other in others)
        shown = _shown(actor, scene, grain) * (0.1 if crowded else 1.0)
        if best is None or shown > best[0]:
            best = (shown, actor)
        if shown >= 1 - KINDS[kind].hidden:
            break
    assert best is not None  # noqa: S101 - TRIES is at least one
    return best[1]


def _somewhere(pose: Pose, scene: Scene, rng: np.random.Generator) -> Actor:
    near_side = 0.34 if pose.kind in {"fox", "skunk"} else 0.5  # small animals set the camera off only when near
    foot = scene.horizon + (HEIGHT - scene.horizon) * rng.uniform(near_side, 0.93) if scene.horizon > 0 else HEIGHT * rng.uniform(0.3, 0.93)
    size = KINDS[pose.kind].size * (0.35 + 0.65 * nearness(scene, foot)) * rng.uniform(0.85, 1.35)
    return Actor(pose, float(rng.uniform(0.06, 0.94) * WIDTH), float(foot), float(size), int(rng.choice([-1, 1])))


def _move(actor: Actor, pace: float, rng: np.random.Generator) -> Actor:
    """Where it is a second later; one that stays still moves its head."""
    stride = KINDS[actor.pose.kind].stride * actor.size * actor.pose.turn
    step = actor.pose.step + (1.1 if pace else 0.15)
    lowered = float(np.clip(actor.pose.lowered + rng.normal(0, 0.12), 0, 1))
    pose = actor.pose._replace(step=step, lowered=lowered)
    return actor._replace(pose=pose, x=actor.x + actor.facing * pace * stride, foot=actor.foot + float(rng.normal(0, 1.0)))


def _sprite(actor: Actor, scene: Scene, grain: Grain) -> Sprite:
    """The animal as the light shows it, facing where it goes."""
    bare = actor.pose.kind == "lizard"
    sun = scene.location.sun * actor.facing
    light = Light(0.1, -0.2, 0.97, 0.30) if scene.night else Light(sun, -0.72, math.sqrt(max(1 - sun**2 - 0.52, 0.05)), 0.52)
    sprite = draw_body(
        strokes_of(actor.pose), actor.size, light, grain.skin if bare else grain.fur, fuzz=0.25 if bare else 0.9, melt=0.025 if bare else 0.035
    )
    if actor.facing > 0:
        return sprite
    return Sprite(sprite.rgb[:, ::-1], sprite.cover[:, ::-1], -sprite.left - sprite.cover.shape[1], sprite.top)


def _visible(actor: Actor, sprite: Sprite, scene: Scene) -> tuple[tuple[slice, slice], tuple[slice, slice], Pixels]:
    """Where in the scene the sprite lies, which part of it, and how much of that is not hidden by nearer plants."""
    target, source = overlap(round(actor.x) + sprite.left, round(actor.foot) + sprite.top, *sprite.cover.shape)
    cover = sprite.cover[source].copy()
    for band in scene.bands:
        if band.foot > actor.foot:
            cover *= 1 - band.cover[target]
    return target, source, cover


def _shown(actor: Actor, scene: Scene, grain: Grain) -> float:
    """The share of an animal that can be seen."""
    sprite = _sprite(actor, scene, grain)
    return float(_visible(actor, sprite, scene)[2].sum() / max(sprite.cover.sum(), 1.0))


def _put(img: Pixels, actor: Actor, scene: Scene, grain: Grain) -> Seen | None:
    """Draw an animal into a picture; None when hardly anything of it can be seen."""
    sprite = _sprite(actor, scene, grain)
    target, source, cover = _visible(actor, sprite, scene)
    if cover.sum() < 0.12 * sprite.cover.sum() or cover.sum() < 60:
        return None
    cast_shadow(
        img, (actor.x, actor.foot), 0.6 * actor.size * actor.pose.turn, 0.0 if scene.night else scene.location.sun, 0.25 if scene.night else 0.5
    )
    colours = sprite.rgb[source]
    if scene.night:
        grey = colours @ np.asarray((0.34, 0.44, 0.22), np.float32)
        colours = np.repeat((grey * (0.25 + 1.05 * flash_at(scene, actor.foot)) + 4)[..., None], 3, axis=-1)
    img[target] += (colours - img[target]) * cover[..., None]
    if scene.night:
        _shine(img, actor, scene)
    rows, columns = np.nonzero(cover > 0.3)
    if len(rows) == 0:
        return None
    x, y = int(target[1].start + columns.min()), int(target[0].start + rows.min())
    return Seen(actor.pose.kind, (x, y, int(target[1].start + columns.max()) + 1 - x, int(target[0].start + rows.max()) + 1 - y))


def _shine(img: Pixels, actor: Actor, scene: Scene) -> None:
    """The eye throws the flash back, unless the animal looks away or a plant is before it."""
    ex, ey, radius = eye_of(actor.pose)
    x, y = actor.x + actor.facing * ex * actor.size, actor.foot - ey * actor.size
    column, row = round(x), round(y)
    if actor.pose.coat == 2 or not (4 < column < WIDTH - 5 and 4 < row < HEIGHT - 5):
        return
    if any(band.foot > actor.foot and band.cover[row, column] > 0.4 for band in scene.bands):
        return
    reach = max(radius * actor.size, 1.0)
    dy, dx = np.mgrid[-4:5, -4:5].astype(np.float32)
    away = np.hypot(dx + column - x, dy + row - y)
    glow = np.clip(1.3 - away / reach, 0, 1) * 225 + 60 * np.exp(-((away / (1.8 * reach)) ** 2))
    img[row - 4 : row + 5, column - 4 : column + 5] += glow[..., None].astype(np.float32)


class _Look:
    """How the camera sees during one burst: exposure, colour of the light, shade of clouds and leaves, noise."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene = scene
        shade = 1 + rng.uniform(0.01, 0.03 if scene.night else 0.09) * fractal(rng, WIDTH, HEIGHT, ((4, 3), (9, 7), (30, 20)), 0.6)
        if scene.night:
            tint, gain, self.noise, self.lift = np.ones(3), rng.uniform(0.95, 1.45), rng.uniform(4.0, 7.5), rng.uniform(4, 12)
        else:
            warmth = rng.uniform(-1, 1)
            tint, gain, self.noise, self.lift = (
                np.asarray((1 + 0.07 * warmth, 1.0, 1 - 0.08 * warmth)),
                rng.uniform(0.78, 1.15),
                rng.uniform(2.0, 3.6),
                2.0,
            )
        self.gain: Pixels = (shade[..., None] * tint * gain).astype(np.float32)
        self.grey = float(rng.uniform(0.0, 0.35))  # overcast days wash colours out
        self.degrees = int(rng.integers(4, 14) if scene.night else rng.integers(11, 29))
        self.moon = int(rng.integers(0, 8))

    def take(self, img: Pixels, taken: datetime, grain: Grain, rng: np.random.Generator) -> bytes:
        """The picture as JPEG with the footer strip."""
        lit = img * self.gain
        if not self.scene.night:
            lit += (lit.mean(axis=-1, keepdims=True) - lit) * self.grey
        dy, dx = int(rng.integers(0, FULL_HEIGHT)), int(rng.integers(0, WIDTH))
        noise = np.roll(grain.sensor, (dy, dx), axis=(0, 1))[:HEIGHT]
        lit += (noise * self.noise + self.lift)[..., None]
        full = np.zeros((FULL_HEIGHT, WIDTH, 3), np.uint8)
        # a soft shoulder instead of a hard white, as cameras have it
        full[:HEIGHT] = np.where(lit > 200, 255 - 55 * np.exp(-(np.maximum(lit, 200) - 200) / 55), np.maximum(lit, 0)).astype(np.uint8)
        image = Image.fromarray(full)
        self._write(image, taken)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=76)
        return buffer.getvalue()

    def _write(self, image: Image.Image, taken: datetime) -> None:
        """The camera's name, temperature, moon and time below the scene."""
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
        pen.text((10, HEIGHT + 3), self.scene.location.name.upper(), fill=(235, 235, 235), font=font)
        pen.text((250, HEIGHT + 3), f"{self.degrees}°C  {round(self.degrees * 1.8 + 32)}°F", fill=(235, 235, 235), font=font)
        pen.ellipse((366, HEIGHT + 5, 380, HEIGHT + 19), fill=(230, 230, 220))
        pen.ellipse((366 + 2 * self.moon - 7, HEIGHT + 5, 380 + 2 * self.moon - 7, HEIGHT + 19), fill=(0, 0, 0))
        stamp = taken.strftime("%m-%d-%Y   %H:%M:%S")
        pen.text((WIDTH - 10 - pen.textlength(stamp, font=font), HEIGHT + 3), stamp, fill=(235, 235, 235), font=font)
