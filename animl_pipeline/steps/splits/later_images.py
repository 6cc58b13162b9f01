"""The test on known cameras: the last images of the locations of train and val, which no training ever uses.

A crop is tested so if its image was taken on ``splits.test_after`` or later, or if an earlier run tested it so. Nothing of what is
learnt from may show it: sequences, images and near-duplicates that cross the date are cut. Here near-duplicates are looked for at one
location, too, because the same camera may write an image twice, or with a wrong clock.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SplitsConfig
from animl_pipeline.steps.splits.grouping import Bools, Ints
from animl_pipeline.steps.splits.near_duplicates import near_duplicates
from animl_pipeline.steps.splits.number_crops import NumberedCrops, number_copies, sequences_by_time
from animl_pipeline.steps.splits.optimise import SPLIT_NAMES, TRAIN, VAL
from animl_pipeline.steps.splits.test_set_registry import TESTED_LATER, TRAINED, History

LATER = 3
"""The number of the split ``test_later``. No location is given to it; it takes images of the locations of train and val."""
ALL_SPLITS = (*SPLIT_NAMES, "test_later")
LEARNT = (TRAIN, VAL)


def reserve_later_images(crops: NumberedCrops, history: History) -> tuple[NumberedCrops, Bools, Bools]:
    """The crops with the later ones no longer usable in train and val; which are later, and which of these an earlier run tested.

    An image from which an earlier run learnt is never later.
    """
    use = history.use_of_images(crops.images)[crops.image]
    frozen = use == TESTED_LATER
    later = (crops.late & (use != TRAINED)) | frozen
    usable = crops.usable.copy()
    usable[list(LEARNT)] &= ~later
    return crops._replace(usable=usable), later, frozen


def cut_links(crops: NumberedCrops, split: Ints, frozen: Bools, config: SplitsConfig) -> tuple[Bools, Bools]:
    """What must be left out so that no learnt crop shows what a later one shows: later crops [n], and learnt crops [n].

    The later crop is left out, unless an earlier run tested it: then the learnt one is.

    ``split``: int [n], with ``LATER``. ``frozen``: bool [n], the crops that an earlier run tested as later images.
    """
    left = split.copy()
    for link in _links(crops, split, config):
        linked, later, learnt = link >= 0, left == LATER, np.isin(left, LEARNT)
        crossing = linked & np.isin(link, link[linked & later]) & np.isin(link, link[linked & learnt])
        of_frozen = crossing & np.isin(link, link[linked & later & frozen])
        left[(learnt & of_frozen) | (later & crossing & ~of_frozen)] = -1
    gone = (left < 0) & (split >= 0)
    return gone & (split == LATER), gone & (split != LATER)


def linked_images(crops: NumberedCrops, split: Ints, config: SplitsConfig) -> int:
    """How many values of a link (a sequence, an image, a near-duplicate) are both in the later test and learnt from; must be 0."""
    found = 0
    for link in _links(crops, split, config):
        linked = link >= 0
        found += len(set(link[linked & (split == LATER)].tolist()) & set(link[linked & np.isin(split, LEARNT)].tolist()))
    return found


def undated_at_tested_locations(crops: NumberedCrops, split: Ints, config: SplitsConfig) -> Bools:
    """The learnt crops without a date at locations with later ones: they may be later images, too."""
    if config.test_after is None:
        return np.zeros(len(split), bool)
    tested = (split == LATER) & (crops.location >= 0)
    return np.isin(split, LEARNT) & crops.without_day & np.isin(crops.location, crops.location[tested])


def without_earlier_images(crops: NumberedCrops, split: Ints, history: History) -> Bools:
    """The later crops at locations from which nothing is learnt and never was: the model does not know these cameras."""
    learnt = np.unique(crops.location[np.isin(split, LEARNT)])
    before = np.array([history.locations.get(name) == TRAINED for name in (*crops.locations, "")], bool)
    return np.asarray((split == LATER) & ~np.isin(crops.location, learnt) & ~before[crops.location])


def list_late_images_left_out(crops: NumberedCrops, split: Ints, reason: NDArray[np.object_]) -> pd.DataFrame:
    """The images from the plan's day on with a crop that the later test does not hold: source, image_id, reason."""
    out = crops.late & ~np.isin(split, (LATER, ALL_SPLITS.index("test")))
    rows = crops.rows.loc[out, ["source", "image_id"]].assign(reason=np.where(split[out] >= 0, "used_for_training", reason[out]))
    return rows.drop_duplicates(["source", "image_id"]).sort_values(["source", "image_id"], ignore_index=True)


def _links(crops: NumberedCrops, split: Ints, config: SplitsConfig) -> list[Ints]:
    """What may link later and learnt crops: a number for each crop, -1 for none."""
    by_time = sequences_by_time(pd.Series(crops.location), crops.seconds, config.sequence_gap_seconds)
    links = [crops.image, crops.sequence, crops.copy, np.where(crops.location >= 0, by_time, -1)]
    if config.near_duplicate_bits is not None:
        links.append(_near_duplicates_across(crops, split, config.near_duplicate_bits))
    return links


def _near_duplicates_across(crops: NumberedCrops, split: Ints, bits: int) -> Ints:
    """A number for crops whose images look alike and are on both sides of the date, at whatever locations; -1 for the others."""
    side = np.full(len(crops.images), -1, np.int64)
    for value, mask in ((0, np.isin(split, LEARNT)), (1, split == LATER)):
        side[crops.image[mask]] = value
    _, first = np.unique(crops.image, return_index=True)
    compared = np.flatnonzero(side[crops.image[first]] >= 0)
    if len(set(side[crops.image[first[compared]]].tolist())) < 2:
        return np.full(len(split), -1, np.int64)
    rows = first[compared]
    images = pd.DataFrame({"location": side[crops.image[rows]], "phash": crops.rows["phash"].to_numpy()[rows], "seconds": crops.seconds[rows]})
    certain, likely = near_duplicates(images, bits)
    pairs = type(certain)(*(crops.image[rows][np.concatenate([certain[i], likely[i]])] for i in (0, 1)))
    return number_copies(len(crops.images), pairs)[crops.image]
