"""Search for balanced splits: move and swap whole groups of locations until the score stops improving.

A descent looks at one group after another, scores every split that it could be in and every group that it could be swapped with,
and makes the best change, until no change helps. The best result is then partly shuffled and improved again. The work is bounded, and
counted in numbers compared, not in seconds: the same crops give the same splits on a slow machine.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.core.errors import SplitsError
from animl_pipeline.core.progress import track
from animl_pipeline.steps.splits.grouping import Bools, Ints

log = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
CROPS_WEIGHT, LOCATIONS_WEIGHT, MIX_WEIGHT = 2.0, 1.0, 2.0
"""Weights of the score: animl-ml's create_classification_dataset.py, ``create_splits_random``."""
MISSING_COST = np.array([1000.0, 20.0, 100.0])
"""Cost of a class without any crop in train, val, test. It is far above any other part of the score, so it is avoided first."""
SHORTAGE_COST = np.array([8.0, 4.0, 2.0])
"""Highest cost of a class with fewer crops or locations than wanted: train first, then val, because val chooses the epoch."""
EMPTY_COST = 1e6
"""Cost of a split without any crop."""
GOOD_ENOUGH = 0.005
"""Below this score all shares are within about one per cent of the wanted ones."""
MIN_GAIN = 1e-5
"""A change must improve the score by this much, so that a descent ends."""
MAX_PARTNERS = 400
"""A group is compared with at most this many groups of a split to swap with, chosen at random."""
MAX_STEPS = 20_000
"""Groups looked at in all rounds together, at most, so that a search with many locations takes seconds."""
MAX_NUMBERS = 1_500_000_000
"""Numbers compared in all rounds together, at most: one for each class, of crops and of locations, in each change that is scored. This
many take about 40 CPU seconds. Only plans with more than a thousand classes need as many; they still get one round."""
NUMBERS_AT_ONCE = 20_000
"""So many numbers are compared for one group and split, at most; with more classes, only the most promising swaps are scored."""
MIN_SWAPS = 16
"""But at least so many."""

Floats = NDArray[np.float64]
SCALE = 2.0**18
"""Counts become whole numbers of this many parts of their total. A sum of their products stays below 2^53 for 30,000 columns."""


@dataclass(frozen=True)
class SplitProblem:
    """What the search works on, for g groups and c classes.

    Attributes:
        counts: [3, g, c] crops that a group brings to train, val, test.
        locations: [3, g, c] locations with the class that it brings.
        shares: [3] wanted shares of train, val, test.
        min_counts: [3, c] wanted crops, at least; 0 where the class is not wanted.
        min_locations: [3, c] wanted locations, at least.
        allowed: bool [g, 3], the splits that a group may be in.
    """

    counts: Floats
    locations: Floats
    shares: Floats
    min_counts: Floats
    min_locations: Floats
    allowed: Bools

    @cached_property
    def both(self) -> Floats:
        """[3, g, 2 c] crops, then locations."""
        return np.concatenate([self.counts, self.locations], axis=2)

    @cached_property
    def minimums(self) -> Floats:
        """[3, 2 c] wanted crops and locations, at least."""
        return np.concatenate([self.min_counts, self.min_locations], axis=1)

    @cached_property
    def targets(self) -> Floats:
        """[3, 2 c] wanted crops and locations: the split's share of all that it could have."""
        return np.asarray(self.shares[:, None] * self.both.sum(1))

    @cached_property
    def weights(self) -> Floats:
        """[3, 2 c] weight of a squared difference of one crop or location from the targets."""
        each = np.repeat([CROPS_WEIGHT, LOCATIONS_WEIGHT], self.counts.shape[2])
        return np.asarray(each / np.square(np.maximum(self.both.sum(1), 1)))

    @cached_property
    def mix(self) -> Floats:
        """[3, c] the classes' shares of all crops that each split could have."""
        total = self.counts.sum(1)
        return np.asarray(total / np.maximum(total.sum(1, keepdims=True), 1))


class _State:
    """The splits while they are improved.

    Attributes:
        splits: int [g].
        held: [3, 2 c] crops, then locations, that each split holds.
        costs: [3] each split's part of the score.
        estimates: of swaps; None where all swaps are scored.
        numbers: compared so far.
    """

    def __init__(self, splits: Ints, problem: SplitProblem, estimates: SwapEstimates | None) -> None:
        self.splits, self._problem, self.estimates, self.numbers = splits.copy(), problem, estimates, 0
        self.held = np.stack([problem.both[s][splits == s].sum(0) for s in range(3)])
        self.costs = np.array([_cost(s, self.held[s], problem) for s in range(3)])
        if estimates is not None:
            estimates.start(splits)

    def move(self, group: int, to: int) -> None:
        """Put a group into another split."""
        now = int(self.splits[group])
        self.held[now] -= self._problem.both[now][group]  # whole numbers: no error adds up
        self.held[to] += self._problem.both[to][group]
        self.splits[group] = to
        if self.estimates is not None:
            self.estimates.move(group, now, to)
        for split in (now, to):
            self.costs[split] = _cost(split, self.held[split], self._problem)


class _Change(NamedTuple):
    """The best change of a group: to the split ``to``, in exchange for ``partner`` or alone."""

    gain: float
    to: int
    partner: int | None


def search(problem: SplitProblem, max_rounds: int, rng: np.random.Generator) -> Ints:
    """The best splits found in at most ``max_rounds`` rounds, fewer when they are good enough.

    Returns:
        int [g]: 0 train, 1 val, 2 test.

    Raises:
        SplitsError: a split stays empty, because no group may be in it.
    """
    best, lowest, left = np.zeros(0, np.int64), np.inf, _Work(MAX_STEPS, MAX_NUMBERS)
    estimates = _swap_estimates(problem)
    with track("rounds of the search for splits", max_rounds) as advance:
        for n in range(max_rounds):
            start = _greedy_start(problem) if n == 0 else _random_start(problem, rng) if n == 1 else _shuffle_some(best, problem, rng)
            found, left = _descend(_State(start, problem, estimates), problem, rng, left)
            cost = score(found, problem)
            if cost < lowest:
                best, lowest = found, cost
            finished = lowest < GOOD_ENOUGH or left.is_used_up()
            advance(max_rounds - n if finished else 1)
            if finished:
                break
    log.info("splits: the best of %d rounds scores %.4f%s", n + 1, lowest, "; the work for a search is used up" if left.is_used_up() else "")
    if lowest >= EMPTY_COST:
        raise SplitsError(
            "the locations that must be in test or in train leave no location for another split; add sources with new locations, "
            "or shorten splits.test_only and splits.train_only",
            code="empty_split",
        )
    return best


def score(splits: Ints, problem: SplitProblem) -> float:
    """How far splits are from the wanted shares; lower is better.

    The score of animl-ml's splitter, summed over classes and splits: 2 × (share of the class's crops - wanted share)² + (share of its
    locations - wanted share)², and for val and test 2 × (the class's share of the split - its share of all)². Added are costs far
    above it for a class that a split could have and does not have, or has too few of.
    """
    return float(_State(splits, problem, None).costs.sum())


def _cost(split: int, held: Floats, problem: SplitProblem) -> Floats:
    """One split's part of the score: [..., 2 c] crops and locations that it holds → [...]."""
    cost = np.square(held - problem.targets[split]) @ problem.weights[split]
    counts = held[..., : problem.counts.shape[2]]
    total = counts.sum(-1)
    if split != TRAIN:
        cost += MIX_WEIGHT * np.square(counts / np.maximum(total, 1)[..., None] - problem.mix[split]).sum(-1)
    minimums = problem.minimums[split]
    if (held < minimums).any():
        shortage = (1 - held / np.maximum(minimums, 1)).clip(0) * (minimums > 0)
        missing = (counts == 0) & (problem.min_counts[split] > 0)
        cost += SHORTAGE_COST[split] * shortage.sum(-1) + MISSING_COST[split] * missing.sum(-1)
    return np.asarray(cost + EMPTY_COST * (total == 0))


class _Work(NamedTuple):
    """The work that is left: groups to look at, and numbers to compare."""

    steps: int
    numbers: int

    def is_used_up(self) -> bool:
        """Whether none is left."""
        return self.steps <= 0 or self.numbers <= 0


def _swap_estimates(problem: SplitProblem) -> SwapEstimates | None:
    """Estimates of swaps, if there are too many classes to score all swaps."""
    if min(len(problem.allowed), MAX_PARTNERS) <= _swaps_at_once(problem):
        return None
    return SwapEstimates(problem.both, problem.weights, problem.targets)


def _swaps_at_once(problem: SplitProblem) -> int:
    """How many swaps of a group with groups of one split are scored."""
    return max(MIN_SWAPS, NUMBERS_AT_ONCE // int(problem.both.shape[2]))


def _descend(state: _State, problem: SplitProblem, rng: np.random.Generator, left: _Work) -> tuple[Ints, _Work]:
    """Change one group after another while that lowers the score. Also the work that is left; each group is looked at once without any."""
    free = rng.permutation(np.flatnonzero(problem.allowed.sum(1) > 1))
    steps = unchanged = 0
    while unchanged < len(free) and (steps < len(free) or (steps < left.steps and state.numbers < left.numbers)):
        group = int(free[steps % len(free)])
        change = _best_change(group, state, problem, rng)
        steps += 1
        unchanged = 0 if change else unchanged + 1
        if change:
            now = int(state.splits[group])
            if change.partner is not None:
                state.move(change.partner, now)
            state.move(group, change.to)
    return state.splits, _Work(left.steps - steps, left.numbers - state.numbers)


def _best_change(group: int, state: _State, problem: SplitProblem, rng: np.random.Generator) -> _Change | None:
    now = int(state.splits[group])
    best: _Change | None = None
    for to in np.flatnonzero(problem.allowed[group]):
        if to == now:
            continue
        partners = np.flatnonzero((state.splits == to) & problem.allowed[:, now])
        if state.estimates is not None:
            partners = state.estimates.best_partners(group, now, int(to), partners, _swaps_at_once(problem))
        elif len(partners) > MAX_PARTNERS:
            partners = rng.choice(partners, MAX_PARTNERS, replace=False)
        costs = _costs_after(group, now, int(to), partners, state, problem)
        state.numbers += len(costs) * problem.both.shape[2]
        i = int(costs.argmin())
        gain = float(state.costs[now] + state.costs[to] - costs[i])
        if gain > (best.gain if best else MIN_GAIN):
            best = _Change(gain, int(to), None if i == 0 else int(partners[i - 1]))
    return best


def _costs_after(group: int, now: int, to: int, partners: Ints, state: _State, problem: SplitProblem) -> Floats:
    """[1 + partners]: the costs of the two splits after the group moves alone, or in exchange for each partner."""

    def cost(split: int, sign: int) -> Floats:
        both = problem.both[split]
        change = np.concatenate([-both[[group]], both[partners] - both[group]])
        return _cost(split, state.held[split] + sign * change, problem)

    return cost(now, 1) + cost(to, -1)


def _greedy_start(problem: SplitProblem) -> Ints:
    """Each group where it fits best: groups with little choice first, then those with most of any class."""
    share = problem.counts.max(0) / np.maximum(problem.counts.max(0).sum(0), 1)
    splits = np.full(len(share), -1, np.int64)
    held = np.zeros((3, share.shape[1]))
    for g in np.lexsort((-share.max(1), problem.allowed.sum(1))):
        allowed = np.flatnonzero(problem.allowed[g])
        after = np.square(held[allowed] + share[g] - problem.shares[allowed, None]).sum(1)
        before = np.square(held[allowed] - problem.shares[allowed, None]).sum(1)
        splits[g] = allowed[int((after - before).argmin())]
        held[splits[g]] += share[g]
    return splits


def _random_start(problem: SplitProblem, rng: np.random.Generator) -> Ints:
    """Each group in a random split, by the wanted shares."""
    weights = problem.allowed * problem.shares
    bounds = weights.cumsum(1) / weights.sum(1, keepdims=True)
    return np.asarray((rng.random((len(weights), 1)) > bounds).sum(1), np.int64)


def _shuffle_some(best: Ints, problem: SplitProblem, rng: np.random.Generator) -> Ints:
    """The best splits, with about a twelfth of the groups (at least three) in a random split."""
    chosen = rng.random(len(best)) < max(3 / len(best), 1 / 12)
    return np.where(chosen, _random_start(problem, rng), best)


class SwapEstimates:
    """Estimates for the current splits of g groups: which groups are worth a swap, where scoring all of them would take too long.

    The largest part of a split's score is a weighted sum of squared differences. Its change by a swap follows from products of the groups'
    counts with each other, which are computed once, and with what the splits lack, which are updated with each change. All products are
    of whole numbers, and exact: the order of the additions, which differs between machines, changes nothing.

    Args:
        amounts: [3, g, c] what a group brings to each split.
        weights: [3, c] weight of a squared difference from the target.
        targets: [3, c] what each split should hold.
    """

    def __init__(self, amounts: Floats, weights: Floats, targets: Floats) -> None:
        root = np.sqrt(weights) * SCALE
        self._scaled = [np.round(amounts[0] * root[0])]
        self._products = [self._scaled[0] @ self._scaled[0].T]
        for split in (1, 2):  # without days in the plan, a group brings the same to all splits
            same = np.array_equal(amounts[split], amounts[0]) and np.array_equal(weights[split], weights[0])
            self._scaled.append(self._scaled[0] if same else np.round(amounts[split] * root[split]))
            self._products.append(self._products[0] if same else self._scaled[split] @ self._scaled[split].T)
        self._targets = np.round(targets * root)
        self._lacking = np.zeros((3, amounts.shape[1]))

    def start(self, splits: Ints) -> None:
        """Begin with these splits: int [g]."""
        for split, scaled in enumerate(self._scaled):
            self._lacking[split] = scaled @ (scaled[splits == split].sum(0) - self._targets[split])

    def move(self, group: int, now: int, to: int) -> None:
        """Take in that a group has moved from one split to another."""
        self._lacking[now] -= self._products[now][group]
        self._lacking[to] += self._products[to][group]

    def best_partners(self, group: int, now: int, to: int, partners: Ints, n: int) -> Ints:
        """The n of some groups of the split ``to`` whose swap with ``group`` is estimated to be best, in the order of their numbers."""
        change = 2 * (self._lacking[now][partners] - self._lacking[to][partners])
        for split in (now, to):
            products = self._products[split]
            change += products[partners, partners] - 2 * products[group, partners]
        return np.sort(partners[np.argsort(change, kind="stable")[:n]])
