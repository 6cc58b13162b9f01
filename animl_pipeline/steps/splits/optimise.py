"""The search for balanced shares: the score of the field, made small by moving and swapping whole groups of places.

A descent looks at one group after the other, scores every side that it could be on and every group that it could change
places with, and does what helps most, until nothing helps. The best split found is then shaken and improved again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.core.errors import SplitsError

SIDES = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
EXAMPLES, LOCATIONS, MIX = 2.0, 1.0, 2.0
"""Weights of the score of the field: animl-ml's create_classification_dataset.py, ``create_splits_random``."""
LACKS = np.array([1000.0, 20.0, 100.0])
"""What it costs that a class has no example in train, val, test; far above any score of shares, so it is avoided first."""
SHORT = np.array([8.0, 4.0, 2.0])
"""What it costs that a class has fewer examples or places than asked for, at most; train first, then val, since it chooses the epoch."""
EMPTY = 1e6
"""What it costs that a side has no example at all."""
GOOD_ENOUGH = 0.005
"""A score below which nobody could tell two splits apart: shares within about one per cent of the wanted ones."""
WORTHWHILE = 1e-5
"""What a change must gain, so that a descent ends."""
PARTNERS = 400
"""With how many groups of a side a group may change places, at most; a sample where there are more."""
LOOKS = 20_000
"""Groups looked at in all rounds together, at most, so that many places take seconds."""

Counted = NDArray[np.float64]
Sides = NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """What a search works on."""

    counts: Counted  # [3, groups, classes] examples that a group brings to train, val, test
    locations: Counted  # [3, groups, classes] places with the class that it brings
    shares: Counted  # [3] wanted shares of train, val, test
    least: Counted  # [3, classes] examples wanted at least; 0 where the class cannot be had
    least_locations: Counted  # [3, classes]
    allowed: NDArray[np.bool_]  # [groups, 3] the sides on which a group may be

    @cached_property
    def brings(self) -> Counted:
        """[3, groups, 2 classes] examples, then places."""
        return np.concatenate([self.counts, self.locations], axis=2)

    @cached_property
    def floors(self) -> Counted:
        """[3, 2 classes] examples and places wanted at least."""
        return np.concatenate([self.least, self.least_locations], axis=1)

    @cached_property
    def aims(self) -> Counted:
        """[3, 2 classes] examples and places wanted: the side's share of all that could lie there."""
        return np.asarray(self.shares[:, None] * self.brings.sum(1))

    @cached_property
    def weights(self) -> Counted:
        """[3, 2 classes] what a squared difference of one example or place from the aims counts."""
        each = np.repeat([EXAMPLES, LOCATIONS], self.counts.shape[2])
        return np.asarray(each / np.square(np.maximum(self.brings.sum(1), 1)))

    @cached_property
    def mix(self) -> Counted:
        """[3, classes] the classes' shares of all that could lie on each side."""
        everything = self.counts.sum(1)
        return np.asarray(everything / np.maximum(everything.sum(1, keepdims=True), 1))


class _Sums(NamedTuple):
    """What the three sides hold now."""

    held: Counted  # [3, 2 classes] examples, then places
    costs: Counted  # [3]


class _Change(NamedTuple):
    """The best that can be done with a group: to go to ``to``, in exchange for ``partner`` or alone."""

    gain: float
    to: int
    partner: int | None


def search(wanted: Wanted, rounds: int, rng: np.random.Generator) -> Sides:
    """The best split found in so many rounds; fewer when it is good enough.

    Returns:
        int64 [groups]: 0 train, 1 val, 2 test.

    Raises:
        SplitsError: what is allowed leaves a side without any group.
    """
    best, lowest, looks = np.zeros(0, np.int64), np.inf, 0
    for n in range(rounds):
        start = _dealt(wanted) if n == 0 else _drawn(wanted, rng) if n == 1 else _shaken(best, wanted, rng)
        sides, looked = _descend(start, wanted, rng, LOOKS - looks)
        looks += looked
        cost = score(sides, wanted)
        if cost < lowest:
            best, lowest = sides, cost
        if lowest < GOOD_ENOUGH or looks >= LOOKS:
            break
    if lowest >= EMPTY:
        raise SplitsError(
            "the places that must be in test or in train leave no place for another side; add sources with new places, "
            "or shorten splits.test_only and splits.train_only"
        )
    return best


def score(sides: Sides, wanted: Wanted) -> float:
    """How far a split is from the wanted shares; lower is better.

    The score of the field (animl-ml's splitter): over classes, 2 × (share of the class's examples on a side - wanted)² +
    (share of its places - wanted)² + for val and test 2 × (the class's share of the side - of all)²; and penalties far above
    it for a class that a side could have and has not, or has too little of.
    """
    return float(_sums(sides, wanted).costs.sum())


def _sums(sides: Sides, wanted: Wanted) -> _Sums:
    held = np.stack([wanted.brings[s][sides == s].sum(0) for s in range(3)])
    return _Sums(held, np.array([_cost(s, held[s], wanted) for s in range(3)]))


def _cost(side: int, held: Counted, wanted: Wanted) -> Counted:
    """One side's part of the score. held: [..., 2 classes] examples and places on that side → [...]."""
    cost = np.square(held - wanted.aims[side]) @ wanted.weights[side]
    counts = held[..., : wanted.counts.shape[2]]
    here = counts.sum(-1)
    if side != TRAIN:
        cost += MIX * np.square(counts / np.maximum(here, 1)[..., None] - wanted.mix[side]).sum(-1)
    floors = wanted.floors[side]
    if (held < floors).any():
        short = (1 - held / np.maximum(floors, 1)).clip(0) * (floors > 0)
        cost += SHORT[side] * short.sum(-1) + LACKS[side] * ((counts == 0) & (wanted.least[side] > 0)).sum(-1)
    return np.asarray(cost + EMPTY * (here == 0))


def _descend(start: Sides, wanted: Wanted, rng: np.random.Generator, looks: int) -> tuple[Sides, int]:
    """Change group after group as long as that lowers the score; also how many groups were looked at."""
    sides, now = start.copy(), _sums(start, wanted)
    free = rng.permutation(np.flatnonzero(wanted.allowed.sum(1) > 1))
    looked = idle = 0
    while idle < len(free) and looked < max(looks, len(free)):
        group = free[looked % len(free)]
        change = _best_change(group, sides, now, wanted, rng)
        looked += 1
        idle = 0 if change else idle + 1
        if change:
            if change.partner is not None:
                sides[change.partner] = sides[group]
            sides[group] = change.to
            now = _sums(sides, wanted)
    return sides, looked


def _best_change(group: int, sides: Sides, now: _Sums, wanted: Wanted, rng: np.random.Generator) -> _Change | None:
    here = int(sides[group])
    best: _Change | None = None
    for to in np.flatnonzero(wanted.allowed[group]):
        if to == here:
            continue
        partners = np.flatnonzero((sides == to) & wanted.allowed[:, here])
        if len(partners) > PARTNERS:
            partners = rng.choice(partners, PARTNERS, replace=False)
        costs = _costs_after(group, here, int(to), partners, now, wanted)
        i = int(costs.argmin())
        gain = float(now.costs[here] + now.costs[to] - costs[i])
        if gain > (best.gain if best else WORTHWHILE):
            best = _Change(gain, int(to), None if i == 0 else int(partners[i - 1]))
    return best


def _costs_after(group: int, here: int, to: int, partners: Sides, now: _Sums, wanted: Wanted) -> Counted:
    """[1 + partners]: what the two sides cost after the group went over alone, or in exchange for each partner."""

    def side(which: int, sign: int) -> Counted:
        brings = wanted.brings[which]
        change = np.concatenate([-brings[[group]], brings[partners] - brings[group]])
        return _cost(which, now.held[which] + sign * change, wanted)

    return side(here, 1) + side(to, -1)


def _dealt(wanted: Wanted) -> Sides:
    """Groups dealt out, those with most of any class first, each to where it fits best; the sides that have little choice first."""
    brings = wanted.counts.max(0) / np.maximum(wanted.counts.max(0).sum(0), 1)
    sides = np.full(len(brings), -1, np.int64)
    held = np.zeros((3, brings.shape[1]))
    for g in np.lexsort((-brings.max(1), wanted.allowed.sum(1))):
        may = np.flatnonzero(wanted.allowed[g])
        after = np.square(held[may] + brings[g] - wanted.shares[may, None]).sum(1)
        before = np.square(held[may] - wanted.shares[may, None]).sum(1)
        sides[g] = may[int((after - before).argmin())]
        held[sides[g]] += brings[g]
    return sides


def _drawn(wanted: Wanted, rng: np.random.Generator) -> Sides:
    """Every group on a side drawn by the wanted shares."""
    weights = wanted.allowed * wanted.shares
    bounds = weights.cumsum(1) / weights.sum(1, keepdims=True)
    sides = (rng.random((len(weights), 1)) > bounds).sum(1)
    return np.asarray(sides, np.int64)


def _shaken(best: Sides, wanted: Wanted, rng: np.random.Generator) -> Sides:
    """The best split with a twelfth of its groups, at least three, drawn anew."""
    some = rng.random(len(best)) < max(3 / len(best), 1 / 12)
    return np.where(some, _drawn(wanted, rng), best)
