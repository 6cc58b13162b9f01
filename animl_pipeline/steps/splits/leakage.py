"""Check finished splits for leakage: anything that is in two splits, or in a split that the history forbids. All counts must be 0."""

from __future__ import annotations

import numpy as np

from animl_pipeline.steps.splits.grouping import Bools, Ints, has_several
from animl_pipeline.steps.splits.later_images import LATER
from animl_pipeline.steps.splits.near_duplicates import Pairs
from animl_pipeline.steps.splits.number_crops import NumberedCrops
from animl_pipeline.steps.splits.optimise import TEST, TRAIN, VAL
from animl_pipeline.steps.splits.test_set_registry import NEW, TESTED, TESTED_LATER, TRAINED, History


def count_leaks(crops: NumberedCrops, split: Ints, history: History) -> dict[str, int]:
    """How many locations, sequences, images and pairs of near-duplicates are in two splits; and how many crops the history forbids.

    ``split``: int [n], 0 train, 1 val, 2 test, 3 test_later, -1 for none.
    """
    image_use = history.use_of_images(crops.images)[crops.image]
    earlier_use = _earlier_use(crops, history, image_use)
    return {
        "locations": int(has_several(crops.location, np.where(split == LATER, -1, split)).sum()),
        "locations_of_test_in_test_later": int(has_several(crops.location, np.select([split == TEST, split == LATER], [0, 1], -1)).sum()),
        "sequences": int(has_several(crops.sequence, split).sum()),
        "images": int(has_several(crops.image, split).sum()),
        "near_duplicates": int(has_several(crops.copy, split).sum()) + int(in_two_splits(crops, split, crops.likely_copies).sum()),
        "tested_before_and_not_in_test": int(((split >= 0) & (split != TEST) & (earlier_use == TESTED)).sum()),
        "trained_on_before_and_in_test": int(((split == TEST) & (earlier_use == TRAINED)).sum()),
        "tested_later_before_and_learnt": int((((split == TRAIN) | (split == VAL)) & (image_use == TESTED_LATER)).sum()),
        "trained_on_before_and_in_test_later": int(((split == LATER) & (image_use == TRAINED)).sum()),
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


def _earlier_use(crops: NumberedCrops, history: History, image_use: Ints) -> Ints:
    """What the registry says about each crop, by its image or else by the name of its location."""
    by_location = np.array([history.locations.get(name, NEW) for name in (*crops.locations, "")], np.int64)[crops.location]
    return np.where(image_use == NEW, by_location, image_use)
