"""Five animals of the island as strokes: a fox, a bird, a skunk, a rodent and a lizard, each in several poses and coats.

Lengths are in body lengths, x towards the head, y upwards from the ground. Two animals of one kind differ in coat, build,
pose, how far they turn from the camera, and where in a step they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from animl_pipeline.dev.synthetic.bodies import BODY, FAR, NEAR, TOP, Colour, Stroke

Strokes = list[Stroke]
DARK: Colour = (24, 21, 20)


class Pose(NamedTuple):
    """How one animal stands in one frame. ``step`` is where in a step it is (radians), ``turn`` shortens it as it turns away."""

    kind: str
    coat: int
    step: float
    lowered: float
    turn: float
    tail: float
    build: float


class Kind(NamedTuple):
    """An animal: how to draw it, pixels of a body length at the near edge of a picture, how far it walks between frames."""

    strokes: Callable[[Pose], Strokes]
    size: float
    stride: float
    night: float
    hidden: float


def draw_pose(kind: str, rng: np.random.Generator) -> Pose:
    """A pose by chance."""
    return Pose(
        kind=kind,
        coat=int(rng.integers(0, 4)),
        step=float(rng.uniform(0, 2 * math.pi)),
        lowered=float(rng.choice([0.0, 0.25, 1.0], p=[0.5, 0.25, 0.25])),
        turn=float(rng.choice([1.0, 0.8, 0.6], p=[0.55, 0.3, 0.15])),
        tail=float(rng.uniform(0, 1)),
        build=float(rng.uniform(0.9, 1.12)),
    )


def strokes_of(pose: Pose) -> Strokes:
    """The strokes of an animal in a pose, facing right."""
    plain = KINDS[pose.kind].strokes(pose)
    return [s._replace(ax=s.ax * pose.turn, bx=s.bx * pose.turn, ra=s.ra * pose.build, rb=s.rb * pose.build) for s in plain]


def _fox(p: Pose) -> Strokes:
    grey, rufous, pale = _coat(p, (118, 112, 105), (104, 97, 90)), _coat(p, (150, 108, 76), (134, 100, 74)), (208, 197, 180)
    hx, hy = 0.76 + 0.08 * p.lowered, 0.88 - 0.58 * p.lowered
    droop = 0.25 * p.tail
    return [
        *_leg(0.34, 0.50, 0.30, p.step + math.pi, rufous, FAR, front=True),
        *_leg(-0.40, 0.52, 0.30, p.step, rufous, FAR, front=False),
        Stroke(-0.50, 0.60, -0.78, 0.48 - droop, 0.07, 0.12, grey, rufous),
        Stroke(-0.78, 0.48 - droop, -1.08, 0.34 - droop, 0.12, 0.10, grey, rufous),
        Stroke(-1.08, 0.34 - droop, -1.22, 0.28 - droop, 0.09, 0.03, DARK, DARK),
        Stroke(0.34, 0.55, -0.36, 0.59, 0.21, 0.18, grey, pale),
        Stroke(-0.30, 0.56, -0.44, 0.50, 0.19, 0.15, grey, rufous),
        Stroke(0.40, 0.58, hx - 0.08, hy - 0.04, 0.165, 0.10, rufous, pale),
        Stroke(hx - 0.05, hy, hx + 0.04, hy - 0.02, 0.142, 0.112, grey, pale),
        Stroke(hx + 0.06, hy - 0.03, hx + 0.22, hy - 0.09, 0.068, 0.036, rufous, pale),
        Stroke(hx - 0.02, hy + 0.07, hx + 0.03, hy + 0.29, 0.062, 0.014, DARK, rufous, FAR),
        Stroke(hx - 0.09, hy + 0.07, hx - 0.12, hy + 0.30, 0.078, 0.014, rufous, DARK),
        Stroke(-0.10, 0.78, -0.95, 0.52 - droop, 0.03, 0.04, (58, 54, 52), DARK, mark=True),
        Stroke(0.42, 0.42, 0.30, 0.36, 0.05, 0.07, pale, pale, mark=True),
        *_leg(0.40, 0.50, 0.30, p.step, rufous, NEAR, front=True),
        *_leg(-0.34, 0.52, 0.30, p.step + math.pi, rufous, NEAR, front=False),
        Stroke(hx + 0.225, hy - 0.085, hx + 0.235, hy - 0.09, 0.028, 0.026, DARK, DARK, TOP, flat=True),
        Stroke(hx + 0.035, hy + 0.015, hx + 0.045, hy + 0.013, 0.021, 0.019, DARK, DARK, TOP, flat=True),
    ]


def _skunk(p: Pose) -> Strokes:
    black, white = _coat(p, (38, 36, 37), (50, 46, 44)), (214, 210, 202)
    hx, hy = 0.60, 0.30 - 0.12 * p.lowered
    up = 0.35 + 0.65 * p.tail
    tip = (-0.78 - 0.28 * (1 - up), 0.45 + 0.75 * up)
    return [
        *_leg(0.28, 0.26, 0.20, p.step + math.pi, black, FAR, front=True, thick=1.25),
        *_leg(-0.34, 0.28, 0.20, p.step, black, FAR, front=False, thick=1.25),
        Stroke(-0.48, 0.40, -0.66, 0.42 + 0.28 * up, 0.09, 0.17, black, black),
        Stroke(-0.66, 0.42 + 0.28 * up, tip[0], tip[1], 0.18, 0.12, black, black),
        Stroke(0.28, 0.34, -0.30, 0.42, 0.19, 0.25, black, black),
        Stroke(0.30, 0.34, hx - 0.08, hy + 0.02, 0.17, 0.115, black, black),
        Stroke(hx - 0.06, hy, hx + 0.16, hy - 0.06, 0.11, 0.045, black, black),
        Stroke(hx - 0.10, hy + 0.10, hx - 0.11, hy + 0.12, 0.045, 0.04, black, black),
        *_stripes(p, white, hx, hy),
        Stroke(-0.60, 0.46 + 0.26 * up, tip[0] - 0.02, tip[1] + 0.06, 0.015, 0.085 + 0.03 * (p.coat % 2), white, white, mark=True),
        *_leg(0.34, 0.26, 0.20, p.step, black, NEAR, front=True, thick=1.25),
        *_leg(-0.28, 0.28, 0.20, p.step + math.pi, black, NEAR, front=False, thick=1.25),
        Stroke(hx + 0.17, hy - 0.06, hx + 0.18, hy - 0.065, 0.026, 0.022, (60, 44, 44), DARK, TOP, flat=True),
        Stroke(hx + 0.02, hy + 0.03, hx + 0.025, hy + 0.03, 0.018, 0.017, (8, 8, 8), DARK, TOP, flat=True),
    ]


def _stripes(p: Pose, white: Colour, hx: float, hy: float) -> Strokes:
    """A spotted skunk's broken stripes, or two whole ones."""
    brow = Stroke(hx + 0.02, hy + 0.07, hx + 0.05, hy + 0.06, 0.028, 0.02, white, white, mark=True)
    if p.coat % 2:
        return [
            brow,
            Stroke(0.42, 0.46, -0.44, 0.58, 0.035, 0.06, white, white, mark=True),
            Stroke(0.30, 0.32, -0.40, 0.34, 0.02, 0.03, white, white, mark=True),
        ]
    pieces = [
        (0.42, 0.44, 0.12, 0.47),
        (0.02, 0.50, -0.24, 0.56),
        (0.36, 0.30, 0.10, 0.34),
        (0.00, 0.36, -0.06, 0.26),
        (-0.20, 0.40, -0.26, 0.26),
        (-0.40, 0.50, -0.46, 0.34),
    ]
    return [brow, *(Stroke(ax, ay, bx, by, 0.034, 0.03, white, white, mark=True) for ax, ay, bx, by in pieces)]


def _rodent(p: Pose) -> Strokes:
    brown, pale = _coat(p, (134, 106, 80), (104, 92, 82)), (206, 196, 182)
    hx, hy = 0.48, 0.32 - 0.06 * p.lowered + 0.14 * (p.coat == 3)
    pink: Colour = (168, 128, 116)
    sway = 0.16 * math.sin(p.step) + 0.1 * p.tail
    return [
        Stroke(-0.46, 0.16, -0.88, 0.10 + sway, 0.04, 0.028, pink, pink, FAR),
        Stroke(-0.88, 0.10 + sway, -1.30, 0.08 + 0.4 * sway, 0.028, 0.014, pink, pink, FAR),
        Stroke(hx + 0.02, hy + 0.14, hx + 0.04, hy + 0.23, 0.07, 0.075, brown, brown, FAR),
        Stroke(0.20, 0.27, -0.24, 0.31, 0.21, 0.27, brown, pale),
        Stroke(-0.24, 0.26, -0.36, 0.20, 0.22, 0.17, brown, pale),
        Stroke(0.24, 0.28, hx, hy, 0.19, 0.155, brown, pale),
        Stroke(hx + 0.02, hy - 0.01, hx + 0.22, hy - 0.08, 0.135, 0.045, brown, pale),
        Stroke(0.24, 0.12, 0.30, 0.03 + 0.03 * math.sin(p.step), 0.05, 0.035, pale, pink, NEAR),
        Stroke(0.30, 0.025, 0.36, 0.02, 0.03, 0.02, pink, pink, NEAR),
        Stroke(-0.30, 0.14, -0.20, 0.04, 0.12, 0.05, brown, pale, NEAR),
        Stroke(-0.22, 0.03, -0.06, 0.025, 0.035, 0.025, pink, pink, NEAR),
        Stroke(hx - 0.08, hy + 0.14, hx - 0.09, hy + 0.24, 0.075, 0.095, brown, brown, NEAR),
        Stroke(hx - 0.08, hy + 0.19, hx - 0.085, hy + 0.24, 0.04, 0.058, pink, pink, NEAR, mark=True),
        Stroke(hx + 0.235, hy - 0.08, hx + 0.24, hy - 0.085, 0.024, 0.022, pink, DARK, TOP, flat=True),
        Stroke(hx + 0.075, hy + 0.05, hx + 0.08, hy + 0.05, 0.038, 0.036, (10, 9, 9), DARK, TOP, flat=True),
    ]


def _bird(p: Pose) -> Strokes:
    coats: list[tuple[Colour, Colour, Colour]] = [
        ((98, 108, 124), (176, 172, 166), (74, 88, 108)), ((46, 46, 50), (58, 56, 58), (36, 36, 42)),
        ((124, 104, 84), (190, 176, 154), (92, 76, 62)), ((112, 112, 108), (172, 150, 124), (84, 84, 82)),
    ]  # fmt: skip
    back, belly, wing = coats[p.coat]
    tilt = 0.30 * p.lowered
    hx, hy = 0.34 + 0.10 * p.lowered, 0.80 - 0.50 * p.lowered
    leg: Colour = (84, 70, 58)
    parts = [
        Stroke(0.02, 0.36, -0.02 + 0.08 * math.sin(p.step), 0.03, 0.03, 0.022, leg, leg, FAR),
        Stroke(-0.30, 0.46 + tilt, -0.92, 0.36 + 0.9 * tilt, 0.085, 0.055, wing, wing),
        Stroke(0.16, 0.52 - 0.3 * tilt, -0.26, 0.46 + 0.7 * tilt, 0.215, 0.13, back, belly),
        Stroke(0.20, 0.58 - 0.3 * tilt, hx, hy, 0.15, 0.125, back, belly),
        Stroke(hx, hy, hx + 0.05, hy - 0.01, 0.135, 0.115, back, belly),
        Stroke(0.06, 0.03 + 0.3, 0.05 - 0.08 * math.sin(p.step), 0.02, 0.032, 0.022, leg, leg, NEAR),
        Stroke(0.05 - 0.08 * math.sin(p.step), 0.02, 0.17 - 0.08 * math.sin(p.step), 0.012, 0.022, 0.014, leg, leg, NEAR),
        Stroke(hx + 0.12, hy - 0.01 - 0.03 * p.lowered, hx + 0.33, hy - 0.06 - 0.13 * p.lowered, 0.05, 0.012, (52, 46, 40), DARK, NEAR),
        Stroke(hx + 0.065, hy + 0.03, hx + 0.07, hy + 0.03, 0.023, 0.022, (8, 8, 8), DARK, TOP, flat=True),
    ]
    if p.tail > 0.82:  # taking off
        flap = 0.25 * math.sin(2 * p.step)
        raised = [
            Stroke(0.10, 0.58, -0.10, 1.00 + flap, 0.12, 0.15, wing, wing, NEAR),
            Stroke(-0.10, 1.00 + flap, -0.36, 1.30 + 1.3 * flap, 0.15, 0.05, wing, wing, NEAR),
        ]
        return [*parts, *(s._replace(layer=FAR, ax=s.ax + 0.18, bx=s.bx + 0.3) for s in raised), *raised]
    folded = [
        Stroke(0.10, 0.54 - 0.2 * tilt, -0.46, 0.42 + 0.9 * tilt, 0.13, 0.045, wing, wing, NEAR),
        Stroke(-0.02, 0.47, -0.36, 0.42 + 0.7 * tilt, 0.012, 0.01, belly, belly, NEAR, mark=True),
    ]
    return [*parts, *folded]


def _lizard(p: Pose) -> Strokes:
    back, pale = _coat(p, (116, 104, 84), (94, 92, 78)), (172, 162, 140)
    dark: Colour = (58, 52, 44)
    seen_from_above = p.coat % 2 == 0
    bend, rise = 0.10 * math.sin(p.step), 0.24 if seen_from_above else 0.12
    spine = [(0.66, 0.03), (0.46, 0.0), (0.28, -0.3), (0.0, 0.2), (-0.30, 1.0), (-0.62, 0.4), (-0.92, -0.8), (-1.25, -1.4)]
    thick = [0.055, 0.108, 0.088, 0.135, 0.105, 0.068, 0.036, 0.012]
    lift = 0.10 * (1 - p.lowered) * (not seen_from_above)
    points = [(x, rise + bend * side * (1.6 if seen_from_above else 0.5) + lift * max(0.0, x)) for x, side in spine]
    trunk = [Stroke(*points[i], *points[i + 1], thick[i], thick[i + 1], back, back if seen_from_above else pale) for i in range(len(points) - 1)]
    stripes = [
        Stroke(points[i][0], points[i][1] + 0.035, points[i + 1][0], points[i + 1][1] + 0.03, 0.016, 0.014, pale, pale, mark=True)
        for i in range(1, 5)
    ]
    bars = [
        Stroke(x, points[3][1] - 0.01, x - 0.03, points[3][1] + 0.08, 0.014, 0.018, dark, dark, mark=True)
        for x in (0.24, 0.14, 0.04, -0.06, -0.16, -0.26)
    ]
    eye = Stroke(0.555, points[1][1] + 0.045, 0.56, points[1][1] + 0.045, 0.02, 0.019, (12, 11, 10), DARK, TOP, flat=True)
    return [*trunk, *stripes, *bars, *_sprawled(p, points, back, seen_from_above), eye]


def _sprawled(p: Pose, points: list[tuple[float, float]], colour: Colour, seen_from_above: bool) -> Strokes:
    """A lizard's four legs, elbows out."""
    legs: Strokes = []
    for (x, y), sign, phase in (((0.27, points[2][1]), 1, 0.0), ((-0.29, points[4][1]), -1, 1.6)):
        for side, layer in ((1, FAR), (-1, NEAR)):
            swing = 0.07 * math.sin(p.step + phase + (side > 0) * math.pi)
            elbow = (x + sign * 0.07, y + (0.20 * side if seen_from_above else 0.05))
            foot = (x + sign * 0.19 + swing, y + 0.25 * side if seen_from_above else 0.02 + 0.04 * (side > 0))
            legs.append(Stroke(x, y, *elbow, 0.05, 0.036, colour, colour, BODY if seen_from_above else layer))
            legs.append(Stroke(*elbow, *foot, 0.036, 0.02, colour, colour, BODY if seen_from_above else layer))
            legs.append(Stroke(*foot, foot[0] + 0.09, foot[1], 0.018, 0.01, colour, colour, BODY if seen_from_above else layer))
    return legs


def _leg(x: float, hip: float, stride: float, phase: float, colour: Colour, layer: int, *, front: bool, thick: float = 1.0) -> Strokes:
    """A leg in a step: thigh, shank and paw, the knee bent backwards for hind legs and forwards for front legs."""
    foot_x = x + 0.55 * stride * math.sin(phase) + (0.03 if front else -0.04)
    foot_y = 0.03 + 0.28 * hip * max(0.0, math.cos(phase)) * 0.8
    knee_x = (x + foot_x) / 2 + (0.035 if front else 0.10) * (hip / 0.5)
    knee_y = (hip + foot_y) / 2 - 0.02
    if front:
        joints = [(x, hip), (knee_x, knee_y), (foot_x, foot_y)]
        radii = [0.085, 0.046, 0.033]
    else:
        hock = (foot_x - 0.09 * (hip / 0.5), foot_y + 0.38 * hip)
        joints = [(x, hip), (knee_x, knee_y + 0.02), hock, (foot_x, foot_y)]
        radii = [0.125, 0.062, 0.036, 0.031]
    radii = [r * thick * (hip / 0.5) ** 0.5 for r in radii]
    # the near thigh melts into the trunk; what is below it stands out from it
    layers = [BODY if layer == NEAR and i == 0 else layer for i in range(len(joints) - 1)]
    bones = [Stroke(*joints[i], *joints[i + 1], radii[i], radii[i + 1], colour, colour, at) for i, at in enumerate(layers)]
    return [*bones, Stroke(foot_x, foot_y - 0.005, foot_x + 0.07, foot_y - 0.012, radii[-1], radii[-1] * 0.7, colour, colour, layer)]


def _coat(p: Pose, one: Colour, other: Colour) -> Colour:
    """A colour between two, by the coat's number."""
    share = p.coat / 3
    return (one[0] + (other[0] - one[0]) * share, one[1] + (other[1] - one[1]) * share, one[2] + (other[2] - one[2]) * share)


KINDS: dict[str, Kind] = {
    "fox": Kind(_fox, size=118, stride=0.55, night=0.5, hidden=0.5),
    "bird": Kind(_bird, size=74, stride=0.35, night=0.12, hidden=0.35),
    "skunk": Kind(_skunk, size=104, stride=0.45, night=0.7, hidden=0.5),
    "rodent": Kind(_rodent, size=62, stride=0.45, night=0.65, hidden=0.3),
    "lizard": Kind(_lizard, size=82, stride=0.30, night=0.2, hidden=0.25),
}
"""The island's animals. ``night`` is the share of its visits in the dark, ``hidden`` how much of it plants may hide."""


def eye_of(pose: Pose) -> tuple[float, float, float]:
    """Where the eye is that shines in a flash, and its radius, in body lengths."""
    eye = [s for s in strokes_of(pose) if s.flat][-1]
    return eye.ax, eye.ay, eye.ra
