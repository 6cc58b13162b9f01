"""Apply the history of earlier runs: which crops may still be used for training, and which for testing.

A location that was used for testing stays in test; one that was used for training is never tested. Names change and locations are
merged, so a location is recognised by its images, too. If one location was used for both, it is left out: it would make test scores
too good, or make all earlier tests worthless.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.steps.splits.grouping import Bools, Ints, group_crops, has_several
from animl_pipeline.steps.splits.number_crops import NumberedCrops
from animl_pipeline.steps.splits.test_set_registry import ANY_LOCATION, BOTH, NEW, PREFIX, TESTED, TESTED_LATER, TRAINED, UNKNOWN_LOCATION, History


class GroupedCrops(NamedTuple):
    """The crops that are left, in groups that must stay in one split.

    Attributes:
        reason: text [n], why a crop is left out, "" if it is not.
        location_use: int [locations], ``NEW``, ``TRAINED``, ``TESTED`` or ``BOTH``.
        group: int [n], -1 for a crop that is left out.
    """

    reason: NDArray[np.object_]
    location_use: Ints
    group: Ints


def apply_history(crops: NumberedCrops, history: History) -> GroupedCrops:
    """Leave out crops that conflict with the history, so that no group holds both tested and trained locations. Group the others."""
    image_use, location_gone = _image_history(crops, history)
    location_use = _location_history(crops, history, image_use, location_gone)
    here, image = location_use[crops.location], image_use[crops.image]
    cut = _links_tested_to_trained(crops, here)
    rules = {
        "used_for_training_and_testing": here == BOTH,
        "image_was_tested": (here == TRAINED) & (image == TESTED),
        "image_was_trained_on": (here == TESTED) & (image == TRAINED),
        "linked_to_a_test_location": cut & (here != TESTED),
        "linked_to_a_training_location": cut & (here == TESTED) & (image != TESTED),
    }
    reason = np.select(list(rules.values()), list(rules), default="").astype(object)
    reason[_connects_tested_and_trained(crops, location_use, reason == "")] = "linked_to_test_and_training_locations"
    group = np.full(len(reason), -1, np.int64)
    remaining = crops.select(reason == "")
    group[reason == ""] = group_crops(remaining.location, remaining.links())
    return GroupedCrops(reason, location_use, group)


def _image_history(crops: NumberedCrops, history: History) -> tuple[Ints, Bools]:
    """For each image its earlier use, and whether its location then is no longer among the locations."""
    n = len(crops.images)
    if not history.images:
        return np.full(n, NEW), np.zeros(n, bool)
    uses, position_of = history.image_uses()
    position = pd.Series(crops.images, dtype=str).str.slice(0, PREFIX).map(position_of).fillna(len(uses)).to_numpy(np.int64)
    image_use = np.array([*(u.use for u in uses), NEW])[position]
    present = np.array([*(u.location in {UNKNOWN_LOCATION, *crops.locations} for u in uses), True])[position]
    any_location = np.array([*(u.location == ANY_LOCATION for u in uses), False])[position]
    at_test_location = np.zeros(n, bool)
    at_test_location[crops.image[_use_by_name(crops, history)[crops.location] == TESTED]] = True
    return image_use, ~present & ~(any_location & at_test_location)


def _use_by_name(crops: NumberedCrops, history: History) -> Ints:
    return np.array([history.locations.get(name, NEW) for name in crops.locations], np.int64)


def _location_history(crops: NumberedCrops, history: History, image_use: Ints, location_gone: Bools) -> Ints:
    """Each location's earlier use: by its name, and by images whose own location is gone (at a new location: by any images)."""
    by_name = _use_by_name(crops, history)
    counts = location_gone[crops.image] | (by_name[crops.location] == NEW)
    found = by_name
    for use, image_uses in ((TRAINED, (TRAINED, TESTED_LATER)), (TESTED, (TESTED,))):
        has_use = np.zeros(len(by_name), bool)
        has_use[crops.location[counts & np.isin(image_use[crops.image], image_uses)]] = True
        found = found | np.where(has_use, use, NEW)
    return found


def _tested_or_trained(use: Ints) -> Ints:
    """0 for tested, 1 for trained, -1 for anything else."""
    return np.where(use == TESTED, 0, np.where(use == TRAINED, 1, -1))


def _links_tested_to_trained(crops: NumberedCrops, use: Ints) -> Bools:
    """The crops whose sequence, image or copy links a tested location to a trained one. Without them, both can stay."""
    found = np.zeros(len(use), bool)
    for link in crops.links():
        found |= (link >= 0) & has_several(link, _tested_or_trained(use))[link]
    return found


def _connects_tested_and_trained(crops: NumberedCrops, location_use: Ints, left: Bools) -> Bools:
    """The crops of new locations that connect a tested location with a trained one."""
    found = np.zeros(len(left), bool)
    if not {TESTED, TRAINED} <= set(location_use.tolist()):
        return found
    remaining = crops.select(left)
    group, use = group_crops(remaining.location, remaining.links()), location_use[remaining.location]
    if len(group):
        found[np.flatnonzero(left)] = has_several(group, _tested_or_trained(use))[group] & (use == NEW)
    return found
