"""The Nature Conservancy's rules for scoring a model in service, restated on documents as Animl keeps them, in plain loops.

Written from the description of the rules alone, so that it can disagree with the product.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Label(NamedTuple):
    """A label of an object: its name, whether the model made it, and whether a person validated it (None: not decided)."""

    name: str
    by_model: bool
    validated: bool | None


class AnimlObject(NamedTuple):
    locked: bool
    labels: tuple[Label, ...]

    def truth(self) -> str | None:
        return next((label.name for label in self.labels if label.validated), None)


class AnimlImage(NamedTuple):
    deployment: str
    seconds: float
    objects: tuple[AnimlObject, ...]


class Tally(NamedTuple):
    actual: int
    hits: int
    misses: int
    false_alarms: int


def sequences_of(images: list[AnimlImage], gap_s: float) -> list[list[AnimlImage]]:
    """Images of each deployment in order of time; a new sequence begins after more than ``gap_s`` seconds, or where a time is unknown."""
    found: list[list[AnimlImage]] = []
    for deployment in sorted({image.deployment for image in images}):
        previous = math.nan
        dated = sorted((i for i in images if i.deployment == deployment and not math.isnan(i.seconds)), key=lambda i: i.seconds)
        for image in dated:
            if not math.isnan(previous) and image.seconds - previous <= gap_s:
                found[-1].append(image)
            else:
                found.append([image])
            previous = image.seconds
        found += [[i] for i in images if i.deployment == deployment and math.isnan(i.seconds)]
    return found


def tally(images: list[AnimlImage], target: str, equivalents: set[str], gap_s: float = 3) -> Tally:
    """Sequences with the target, and how the model did. ``equivalents``: further true names for which the target is right."""
    right = {target} | equivalents
    actual = hits = misses = false_alarms = 0
    for sequence in sequences_of(images, gap_s):
        objects = [o for image in sequence for o in image.objects if o.locked]
        called = [o for o in objects if any(label.by_model and label.name == target for label in o.labels)]
        is_actual = any(o.truth() in right for o in objects)
        is_hit = any(o.truth() in right for o in called)
        is_false = any(o.truth() not in right for o in called)
        actual += is_actual
        hits += is_hit
        misses += is_actual and not is_hit
        false_alarms += is_false and not is_actual
    return Tally(actual, hits, misses, false_alarms)
