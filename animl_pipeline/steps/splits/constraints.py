"""Turn the plan's section `splits` into constraints for the search, and explain why a class has too few crops in val or test."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from animl_pipeline.config import SplitsConfig
from animl_pipeline.core.errors import SplitsError
from animl_pipeline.steps.splits.grouping import Bools, Ints
from animl_pipeline.steps.splits.optimise import SPLIT_NAMES, TEST, TRAIN, VAL, Floats, SplitProblem
from animl_pipeline.steps.splits.test_set_registry import TESTED, TRAINED


class SplittableCrops(NamedTuple):
    """The n crops that can be divided into splits.

    Attributes:
        group: int [n], numbered without gaps. A group stays in one split.
        location, class_number: int [n].
        usable: bool [3, n], the splits in which the plan's dates allow the crop.
        locations: name of each location.
        location_use: int [locations], what earlier runs used each location for.
    """

    group: Ints
    location: Ints
    class_number: Ints
    usable: Bools
    locations: tuple[str, ...]
    location_use: Ints


class Shortfall(NamedTuple):
    """A class that has fewer crops or locations in val or test than wanted."""

    class_id: str
    split: str
    crops: int
    locations: int
    reason: str

    def message(self, config: SplitsConfig) -> str:
        """One line for a person."""
        wanted = f"{_crops(config.min_per_class)} at {_locations(config.min_locations_per_class)}"
        return f"{self.class_id}: wanted {wanted} in {self.split}, got {_crops(self.crops)} at {_locations(self.locations)}. {self.reason}"


def _crops(n: int) -> str:
    return f"{n:,} {'crop' if n == 1 else 'crops'}"


def _locations(n: int) -> str:
    return f"{n:,} {'location' if n == 1 else 'locations'}"


def make_problem(crops: SplittableCrops, config: SplitsConfig, classes: tuple[str, ...]) -> SplitProblem:
    """What the search works on.

    Raises:
        SplitsError: the plan wants to train on locations of the test set, to test on locations that were used for training, or wants linked locations
            in different splits.
    """
    shape = (int(crops.group.max()) + 1, len(classes))
    counts = np.stack([_count_pairs(crops.group[u], crops.class_number[u], shape) for u in crops.usable])
    locations = np.stack([_count_locations(crops, u, shape) for u in crops.usable])
    allowed = _allowed_splits(crops, config) & (counts.sum(2) > 0).T
    shares = np.array([1 - config.val - config.test, config.val, config.test])
    return SplitProblem(counts, locations, shares, *_minimums(counts, locations, allowed, shares, config), allowed)


def _count_pairs(rows: Ints, columns: Ints, shape: tuple[int, int]) -> Floats:
    """How often each pair of a row and a column occurs."""
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape).astype(float)


def _count_locations(crops: SplittableCrops, usable: Bools, shape: tuple[int, int]) -> Floats:
    """[groups, classes]: locations of the group that have the class."""
    n = shape[1]
    pairs = np.unique(crops.location[usable] * n + crops.class_number[usable])
    group = np.zeros(len(crops.locations), np.int64)
    group[crops.location] = crops.group
    return _count_pairs(group[pairs // n], pairs % n, shape)


def _minimums(counts: Floats, locations: Floats, allowed: Bools, shares: Floats, config: SplitsConfig) -> tuple[Floats, Floats]:
    """Crops and locations of each class wanted in each split, at least: both [3, classes]; 0 where that is impossible.

    A class in one group is only trained on, in two groups tested as well, in three groups in every split. Val and test want no more
    of a class than their share of it (val a third of its locations, test a half), and train wants half of its share, so that a small
    class is not used up for testing.
    """
    possible = np.stack([((counts[s] > 0) & allowed[:, [s]]).any(0) for s in range(3)])
    groups = ((counts > 0).any(0) & allowed.any(1, keepdims=True)).sum(0)
    needed = np.stack([groups >= 1, groups >= 3, groups >= 2]) & possible
    by_share = shares[:, None] * counts.max(0).sum(0)
    crops = np.stack([by_share[TRAIN] / 2, *np.minimum(config.min_per_class, by_share[[VAL, TEST]])]).round().clip(1)
    of_class = locations.max(0).sum(0)
    val, test = (np.clip(np.minimum(config.min_locations_per_class, of_class // part), 1, None) for part in (3, 2))
    return needed * crops, needed * np.stack([np.ones_like(of_class), val, test])


def _allowed_splits(crops: SplittableCrops, config: SplitsConfig) -> Bools:
    """Bool [groups, 3]: test only for tested or test_only locations, no test for trained ones, train only for train_only ones."""
    tested, trained = (_groups_with(crops, crops.location_use == use) for use in (TESTED, TRAINED))
    test_only, train_only = (_groups_with(crops, _is_named(crops.locations, names)) for names in (config.test_only, config.train_only))
    _refuse(crops, config.train_only, tested, "train_only", "was used for testing before, and is never trained on")
    _refuse(crops, config.test_only, trained, "test_only", "was used for training before, so that its test scores would be too good")
    _refuse(crops, config.train_only, test_only, "train_only", "shares a sequence or an image with a location in splits.test_only")
    allowed = np.ones((int(crops.group.max()) + 1, 3), bool)
    allowed[trained, TEST] = False
    allowed[train_only] = [True, False, False]
    allowed[tested | test_only] = [False, False, True]
    return allowed


def _groups_with(crops: SplittableCrops, locations: Bools) -> Bools:
    """The groups that have any of these locations."""
    found = np.zeros(int(crops.group.max()) + 1, bool)
    found[crops.group[locations[crops.location]]] = True
    return found


def _is_named(locations: tuple[str, ...], names: Collection[str]) -> Bools:
    return np.array([location in set(names) for location in locations], bool)


def _refuse(crops: SplittableCrops, names: tuple[str, ...], groups: Bools, key: str, why: str) -> None:
    wrong = _is_named(crops.locations, names)[crops.location] & groups[crops.group]
    if wrong.any():
        name = crops.locations[int(crops.location[wrong].min())]
        raise SplitsError(
            f"splits.{key} names {name!r}, which {why} (or it is linked to such a location); remove it from splits.{key}",
            code=f"{key}_conflict",
            location=name,
        )


# -- shortfalls --------------------------------------------------------------------------------------------------------


def find_shortfalls(splits: Ints, problem: SplitProblem, crops: SplittableCrops, config: SplitsConfig, classes: tuple[str, ...]) -> list[Shortfall]:
    """The classes that have fewer crops or locations in val or test than the plan wants, each with the reason."""
    found = []
    for split in (VAL, TEST):
        counts, locations = (a[split][splits == split].sum(0) for a in (problem.counts, problem.locations))
        for c, class_id in enumerate(classes):
            if counts[c] < config.min_per_class or locations[c] < config.min_locations_per_class:
                found.append(Shortfall(class_id, SPLIT_NAMES[split], int(counts[c]), int(locations[c]), _explain(split, c, problem, crops)))
    return found


def _explain(split: int, c: int, problem: SplitProblem, crops: SplittableCrops) -> str:
    """Why a class has too little in a split."""
    has_class = problem.counts[:, :, c].max(0) > 0
    groups = int(has_class.sum())
    possible = int((has_class & problem.allowed[:, split] & (problem.counts[split][:, c] > 0)).sum())
    locations = int(problem.locations.max(0)[:, c].sum())
    if groups == 0:
        return "It has no crop at a known location."
    has = f"It has {_crops(int(problem.counts.max(0)[:, c].sum()))} at {_locations(locations)}"
    has += f", in {groups:,} groups that share sequences or images" if groups < locations else ""
    if possible > 0 and groups < (3 if split == VAL else 2):
        return f"{has}. Train comes first, then test, then val."
    if possible < groups:
        return f"{has}, but only {possible:,} may be in {SPLIT_NAMES[split]}: {_forbidden(has_class, split, problem, crops)}."
    return f"{has}. More would leave too little for the other splits."


def _forbidden(has_class: Bools, split: int, problem: SplitProblem, crops: SplittableCrops) -> str:
    """Why groups that have a class may not be in a split."""
    trained, tested = (has_class & _groups_with(crops, crops.location_use == use) for use in (TRAINED, TESTED))
    forbidden = has_class & ~problem.allowed[:, split]
    reasons = {
        "used for training before": int((forbidden & trained).sum()) if split == TEST else 0,
        "used for testing before": int((forbidden & tested).sum()) if split != TEST else 0,
    }
    reasons["excluded by the plan's train_only, test_only or dates"] = int(forbidden.sum()) - sum(reasons.values())
    return ", ".join(f"{n:,} {reason}" for reason, n in reasons.items() if n > 0)
