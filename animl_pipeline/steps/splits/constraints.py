"""What the plan asks of a split, in numbers for the search; and why a class has less of val or test than was asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.config import SplitsConfig
from animl_pipeline.core.errors import SplitsError
from animl_pipeline.steps.splits.grouping import Codes
from animl_pipeline.steps.splits.history import WAS_LEARNT, WAS_TESTED
from animl_pipeline.steps.splits.optimise import SIDES, TEST, TRAIN, VAL, Counted, Sides, Wanted


class Grouped(NamedTuple):
    """Crops that are left to share out, by numbers."""

    group: Codes  # groups are numbered without gaps
    location: Codes
    class_id: Codes
    usable: NDArray[np.bool_]  # [3, crops]: on which sides a crop may be by the plan's dates
    locations: tuple[str, ...]  # name of each place
    standing: Codes  # of each place, as earlier runs left it


class Shortfall(NamedTuple):
    """A class of which val or test has less than asked for."""

    class_id: str
    split: str
    crops: int
    locations: int
    why: str

    def against(self, spec: SplitsConfig) -> str:
        """``test has 0 owl at 0 places, asked for are 10 crops at 1 place: it has 9 crops at 1 place; …``."""
        here, asked = f"{self.crops:,} {self.class_id} at {_locations_of(self.locations)}", _lies(spec.min_per_class, spec.min_locations_per_class)
        return f"{self.split} has {here}, asked for are {asked}: {self.why}"


def _lies(crops: int, locs: int) -> str:
    return f"{crops:,} {'crop' if crops == 1 else 'crops'} at {_locations_of(locs)}"


def _locations_of(n: int) -> str:
    return f"{n:,} {'place' if n == 1 else 'places'}"


def wanted_of(crops: Grouped, spec: SplitsConfig, classes: tuple[str, ...]) -> Wanted:
    """What the search works on.

    Raises:
        SplitsError: the plan asks to train on what was tested on, to test on what was learnt from, or gives tied places
            different sides.
    """
    shape = (int(crops.group.max()) + 1, len(classes))
    counts = np.stack([_table(crops.group[u], crops.class_id[u], shape) for u in crops.usable])
    locs = np.stack([_locations(crops, u, shape) for u in crops.usable])
    allowed = _allowed(crops, spec) & (counts.sum(2) > 0).T
    shares = np.array([1 - spec.val - spec.test, spec.val, spec.test])
    return Wanted(counts, locs, shares, *_least(counts, locs, allowed, spec), allowed)


def _table(rows: Codes, columns: Codes, shape: tuple[int, int]) -> Counted:
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape).astype(float)


def _locations(crops: Grouped, usable: NDArray[np.bool_], shape: tuple[int, int]) -> Counted:
    """[groups, classes]: places of the group that hold the class."""
    n = shape[1]
    pairs = np.unique(crops.location[usable] * n + crops.class_id[usable])
    group = np.zeros(len(crops.locations), np.int64)
    group[crops.location] = crops.group
    return _table(group[pairs // n], pairs % n, shape)


def _least(counts: Counted, locs: Counted, allowed: NDArray[np.bool_], spec: SplitsConfig) -> tuple[Counted, Counted]:
    """Examples and places of each class wanted at least on each side; 0 where it cannot be had.

    With one group a class can only be trained on; with two it is tested too; with three it is on every side. Val and test
    ask for no more of a class than their share of it (a third of its places), and train for half of its share, so that a
    small class is not spent on being measured.
    """
    may = np.stack([((counts[s] > 0) & allowed[:, [s]]).sum(0) for s in range(3)])
    held_by = ((counts > 0).any(0) & allowed.any(1, keepdims=True)).sum(0)
    needs = np.stack([held_by >= 1, held_by >= 3, held_by >= 2]) & (may > 0)
    asked = np.array([1 - spec.val - spec.test, spec.val, spec.test])[:, None] * counts.max(0).sum(0)
    examples = np.stack([asked[TRAIN] / 2, *np.minimum(spec.min_per_class, asked[[VAL, TEST]])]).round().clip(1)
    locations = np.clip(np.minimum(spec.min_locations_per_class, locs.max(0).sum(0) // 3), 1, None)
    return needs * examples, needs * np.stack([np.ones_like(locations), locations, locations])


def _allowed(crops: Grouped, spec: SplitsConfig) -> NDArray[np.bool_]:
    """[groups, 3]: only test for what was tested on or is named so, not test for what was learnt from, else any side."""
    n = int(crops.group.max()) + 1
    tested, learnt = (_groups_with(crops, crops.standing == was) for was in (WAS_TESTED, WAS_LEARNT))
    test_only, train_only = (_groups_with(crops, _named(crops.locations, names)) for names in (spec.test_only, spec.train_only))
    _refuse(crops, spec.train_only, tested, "train_only", "was tested on before; what was once tested on is never trained on")
    _refuse(crops, spec.test_only, learnt, "test_only", "was learnt from before; tested on, it would flatter the model")
    _refuse(crops, spec.train_only, test_only, "train_only", "shares a burst or a picture with a place in splits.test_only")
    allowed = np.ones((n, 3), bool)
    allowed[learnt, TEST] = False
    allowed[train_only] = [True, False, False]
    allowed[tested | test_only] = [False, False, True]
    return allowed


def _groups_with(crops: Grouped, locs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    found = np.zeros(int(crops.group.max()) + 1, bool)
    found[crops.group[locs[crops.location]]] = True
    return found


def _named(locs: tuple[str, ...], names: Collection[str]) -> NDArray[np.bool_]:
    return np.array([location in set(names) for location in locs], bool)


def _refuse(crops: Grouped, names: tuple[str, ...], groups: NDArray[np.bool_], key: str, why: str) -> None:
    wrong = _named(crops.locations, names)[crops.location] & groups[crops.group]
    if wrong.any():
        name = crops.locations[int(crops.location[wrong].min())]
        raise SplitsError(f"splits.{key} names {name!r}, which {why} (or is tied to a place of which that is so): take it out of splits.{key}")


def shortfalls(sides: Sides, wanted: Wanted, crops: Grouped, spec: SplitsConfig, classes: tuple[str, ...]) -> list[Shortfall]:
    """The classes of which val or test has less than the plan asks for, each with the reason."""
    found = []
    for side in (VAL, TEST):
        examples, locs = (a[side][sides == side].sum(0) for a in (wanted.counts, wanted.locations))
        for c, class_id in enumerate(classes):
            if examples[c] < spec.min_per_class or locs[c] < spec.min_locations_per_class:
                found.append(Shortfall(class_id, SIDES[side], int(examples[c]), int(locs[c]), _why(side, c, wanted, crops)))
    return found


def _why(side: int, c: int, wanted: Wanted, crops: Grouped) -> str:
    holds = wanted.counts[:, :, c].max(0) > 0
    groups, may = int(holds.sum()), int((holds & wanted.allowed[:, side] & (wanted.counts[side][:, c] > 0)).sum())
    locs = int(wanted.locations.max(0)[:, c].sum())
    total = int(wanted.counts.max(0)[:, c].sum())
    lives = f"it has {_lies(total, locs)}"
    tied = f", tied to {groups:,} by shared bursts or pictures" if groups < locs else ""
    if groups == 0:
        return "it has no crop at a known place"
    if may == 0:
        return f"{lives}{tied}, none of which may be in {SIDES[side]}: {_kept_apart(holds, side, wanted, crops)}"
    if groups < (3 if side == VAL else 2):
        return f"{lives}{tied}; train comes first, then test, then val"
    if may < groups:
        return f"{lives}{tied}, of which {may:,} may be in {SIDES[side]}: {_kept_apart(holds, side, wanted, crops)}"
    return f"{lives}{tied}; more would starve the other sides"


def _kept_apart(holds: NDArray[np.bool_], side: int, wanted: Wanted, crops: Grouped) -> str:
    """Why groups that hold a class may not be on a side."""
    learnt, tested = (holds & _groups_with(crops, crops.standing == was) for was in (WAS_LEARNT, WAS_TESTED))
    kept = holds & ~wanted.allowed[:, side]
    parts = {
        "once learnt from": int((kept & learnt).sum()) if side == TEST else 0,
        "once tested on": int((kept & tested).sum()) if side != TEST else 0,
    }
    parts["kept away by the plan's train_only, test_only or dates"] = int(kept.sum()) - sum(parts.values())
    return ", ".join(f"{n:,} {what}" for what, n in parts.items() if n > 0)
