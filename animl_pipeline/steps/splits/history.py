"""What may still be learnt from and what may still be tested on, by what earlier runs did with the same places and pictures.

A place once tested on stays in test; one once learnt from is never tested on. Names change and places are merged, so a
place is known by its pictures as well. Where both were done with what is one place now, it is left out: tested on it would
flatter the model, learnt from it would make all earlier tests void.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.steps.splits.grouping import Codes, groups_of, on_two
from animl_pipeline.steps.splits.test_set_registry import ELSEWHERE, LEARNT, MARK, NOWHERE, TESTED, Past

NEW, WAS_TESTED, WAS_LEARNT, BOTH = 0, 1, 2, 3
USES = {TESTED: WAS_TESTED, LEARNT: WAS_LEARNT}


class Crops(NamedTuple):
    """Crops of known places, by numbers."""

    location: Codes
    locations: tuple[str, ...]  # name of each place
    image: Codes
    images: NDArray[np.object_]  # name of each picture
    ties: tuple[Codes, ...]  # bursts, pictures, copies

    def of(self, some: NDArray[np.bool_]) -> Crops:
        """Some of the crops; places and pictures keep their numbers."""
        return self._replace(location=self.location[some], image=self.image[some], ties=tuple(t[some] for t in self.ties))


class Settled(NamedTuple):
    """What is left of the crops, and why the others are left out."""

    reason: NDArray[np.object_]  # a crop: empty text where it stays
    standing: Codes  # a place: NEW, WAS_TESTED, WAS_LEARNT or BOTH
    group: Codes  # a crop: its group; -1 where it is left out


def settle(crops: Crops, past: Past) -> Settled:
    """Who is in conflict with the past is left out, so that no group holds both what was tested and what was learnt."""
    use, gone = _images(crops, past)
    standing = _standing(crops, past, use, gone)
    here, was = standing[crops.location], use[crops.image]
    cut = _cut(crops, here)
    rules = {
        "tested_and_learnt_from": here == BOTH,
        "once_tested": (here == WAS_LEARNT) & (was == WAS_TESTED),
        "once_learnt_from": (here == WAS_TESTED) & (was == WAS_LEARNT),
        "tied_to_a_test_location": cut & (here != WAS_TESTED),
        "tied_to_a_learnt_location": cut & (here == WAS_TESTED) & (was != WAS_TESTED),
    }
    reason = np.select(list(rules.values()), list(rules), default="").astype(object)
    between = _between(crops, standing, reason == "")
    reason[between] = "tied_to_both"
    group = np.full(len(reason), -1, np.int64)
    left = reason == ""
    remaining = crops.of(left)
    group[left] = groups_of(remaining.location, remaining.ties)
    return Settled(reason, standing, group)


def _images(crops: Crops, past: Past) -> tuple[Codes, NDArray[np.bool_]]:
    """For each picture what was done with it, and whether the place that it was of is here no more."""
    n = len(crops.images)
    if not past.images:
        return np.zeros(n, np.int64), np.zeros(n, bool)
    uses = sorted(past.images)
    number = pd.Series(crops.images, dtype=str).str.slice(0, MARK).map(past.done()).fillna(len(uses)).to_numpy(np.int64)
    use = np.array([*(USES[u.how] for u in uses), NEW])[number]
    at_home = np.zeros(n, bool)  # an early register did not say of which place a tested picture was
    at_home[crops.image[_by_name(crops, past)[crops.location] == WAS_TESTED]] = True
    here = np.array([*(u.home in {NOWHERE, *crops.locations} for u in uses), True])[number]
    elsewhere = np.array([*(u.home == ELSEWHERE for u in uses), False])[number]
    return use, ~here & ~(elsewhere & at_home)


def _by_name(crops: Crops, past: Past) -> Codes:
    return np.array([USES.get(past.locations.get(name, ""), NEW) for name in crops.locations], np.int64)


def _standing(crops: Crops, past: Past, use: Codes, gone: NDArray[np.bool_]) -> Codes:
    """What was done with each place: by its name, and by pictures of a place that is here no more (or of any, at a new place)."""
    by_name = _by_name(crops, past)
    tells = gone[crops.image] | (by_name[crops.location] == NEW)
    standing = by_name
    for kind in (WAS_TESTED, WAS_LEARNT):
        held = np.zeros(len(by_name), bool)
        held[crops.location[tells & (use[crops.image] == kind)]] = True
        standing = standing | np.where(held, kind, NEW)
    return standing


def _cut(crops: Crops, here: Codes) -> NDArray[np.bool_]:
    """Crops with a tie between a place once tested on and one once learnt from: the tie is cut, so that both can stay."""
    cut = np.zeros(len(here), bool)
    for tie in crops.ties:
        both = on_two(tie, np.where(here == WAS_TESTED, 0, np.where(here == WAS_LEARNT, 1, -1)))
        cut |= (tie >= 0) & both[tie]
    return cut


def _between(crops: Crops, standing: Codes, left: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Crops of new places that tie a place once tested on to one once learnt from."""
    found = np.zeros(len(left), bool)
    if not {WAS_TESTED, WAS_LEARNT} <= set(standing.tolist()):
        return found
    some = crops.of(left)
    group = groups_of(some.location, some.ties)
    here = standing[some.location]
    mixed = on_two(group, np.where(here == WAS_TESTED, 0, np.where(here == WAS_LEARNT, 1, -1)))
    if len(group):
        found[np.flatnonzero(left)] = mixed[group] & (here == NEW)
    return found
