"""Check finished splits for leakage: anything that is in two splits, or in a split that the history forbids. All counts must be 0."""

from __future__ import annotations

import numpy as np
import pandas as pd

from animl_pipeline.steps.splits.grouping import Bools, Ints, has_several
from animl_pipeline.steps.splits.near_duplicates import Pairs
from animl_pipeline.steps.splits.number_crops import NumberedCrops
from animl_pipeline.steps.splits.optimise import TEST
from animl_pipeline.steps.splits.test_set_registry import NEW, PREFIX, TESTED, TRAINED, History


def count_leaks(crops: NumberedCrops, split: Ints, history: History) -> dict[str, int]:
    """How many locations, sequences, images and pairs of near-duplicates are in two splits; and how many crops the history forbids.

    Args:
        crops: n crops.
        split: int [n], 0 train, 1 val, 2 test, -1 for none.
        history: what earlier runs used.
    """
    earlier_use = _earlier_use(crops, history)
    return {
        "locations": int(has_several(crops.location, split).sum()),
        "sequences": int(has_several(crops.sequence, split).sum()),
        "images": int(has_several(crops.image, split).sum()),
        "near_duplicates": int(has_several(crops.copy, split).sum()) + int(in_two_splits(crops, split, crops.likely_copies).sum()),
        "tested_before_and_not_in_test": int(((split >= 0) & (split != TEST) & (earlier_use == TESTED)).sum()),
        "trained_on_before_and_in_test": int(((split == TEST) & (earlier_use == TRAINED)).sum()),
    }


def split_of_images(crops: NumberedCrops, split: Ints) -> Ints:
    """The split of each image; -1 if none of its crops is in a split."""
    found = np.full(len(crops.images), -1, np.int64)
    np.maximum.at(found, crops.image, split)
    return found


def in_two_splits(crops: NumberedCrops, split: Ints, pairs: Pairs) -> Bools:
    """For each pair of images, whether they are in different splits."""
    of_image = split_of_images(crops, split)
    one, other = of_image[pairs.one], of_image[pairs.other]
    return np.asarray((one >= 0) & (other >= 0) & (one != other))


def _earlier_use(crops: NumberedCrops, history: History) -> Ints:
    """What the registry says about each crop, by its image or else by the name of its location."""
    by_location = np.array([history.locations.get(name, NEW) for name in (*crops.locations, "")], np.int64)[crops.location]
    if not history.images:
        return by_location
    uses, position_of = history.image_uses()
    use_of = position_of.map(dict(enumerate(u.use for u in uses)))
    by_image = pd.Series(crops.images, dtype=str).str.slice(0, PREFIX).map(use_of).to_numpy(float)[crops.image]
    return np.where(np.isnan(by_image), by_location, by_image).astype(np.int64)
