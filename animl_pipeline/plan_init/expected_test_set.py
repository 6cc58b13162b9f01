"""Whether the classes will have enough test crops and test locations for the gate, estimated from annotations and locations alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from animl_pipeline.config import GateConfig, SplitsConfig

ENOUGH_LOCATIONS = 2 * GateConfig().min_locations + 1
"""As many for training as for test, and one for val."""
LEAST_LOCATIONS, LEAST_ANNOTATIONS = 3, 30
"""With less, a class is not worth training even for a first look: train, val and test need a location each."""
SHARE_OF_SMALL_CLASSES = 0.25
"""A larger share in test than usual, if a class is so small that the usual share of it is less than the gate's minimum."""
ENOUGH_ANNOTATIONS = math.ceil(GateConfig().min_examples / SHARE_OF_SMALL_CLASSES)
SHOWN = 8


class ClassSize(NamedTuple):
    """A class, its annotations, and the known locations that have it."""

    id: str
    annotations: int
    locations: int


def forecast_need_more_data(classes: Iterable[ClassSize], gate: GateConfig, splits: SplitsConfig) -> str:
    """Why the verdict will, or will probably, be need_more_data, in one line; "" if the classes should have enough.

    It is certain for a class that could not even reach the gate's numbers with all but one of its locations in test.
    """
    certain, likely = [], []
    for c in classes:
        if c.locations <= gate.min_locations or c.annotations <= gate.min_examples:
            certain.append(_describe(c))
        elif expected_locations(c.locations, splits) < gate.min_locations or round(splits.test * c.annotations) < gate.min_examples:
            likely.append(_describe(c))
    if not certain and not likely:
        return ""
    shown = [*certain, *likely]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    wanted = f"{gate.min_examples} test crops at {gate.min_locations} test locations of every class, and the training needs the others"
    advice = "merge or leave out these classes, add data, or lower gate.min_examples and gate.min_locations"
    will = "will end" if certain else "will probably end"
    return f"this plan {will} as NeedMoreData, because the gate wants {wanted}: {', '.join(shown[:SHOWN])}{more}; {advice}"


def drafted_splits(annotations: Iterable[int]) -> SplitsConfig:
    """The section `splits` of a drafted plan: test gets as many crops and locations of each class as the gate wants.

    ``annotations``: of each class.
    """
    usual = SplitsConfig(min_locations_per_class=GateConfig().min_locations)
    small = any(n * usual.test < GateConfig().min_examples for n in annotations)
    return usual.model_copy(update={"test": SHARE_OF_SMALL_CLASSES}) if small else usual


def expected_locations(locations: int, splits: SplitsConfig) -> int:
    """How many of a class's locations test will have: what the search for splits aims at, or its share if that is more."""
    return max(min(splits.min_locations_per_class, locations // 2), int(splits.test * locations), min(1, locations))


def _describe(c: ClassSize) -> str:
    return f"{c.id} has {_count(c.annotations, 'annotation')} at {_count(c.locations, 'known location')}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
