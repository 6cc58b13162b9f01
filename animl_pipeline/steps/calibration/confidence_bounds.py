"""Bounds of recall, precision and false alarms that hold at other locations with a stated confidence.

Crops of one location are alike, so the locations are the sample: n crops count as the number of independent crops that would tell as
much (Kish 1965), and the bound is Clopper's and Pearson's for that number, as Korn and Graubard (1998) compute it for cluster samples.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PRIOR_CORRELATION, PRIOR_LOCATIONS = 0.5, 10
"""A correlation that is estimated at few locations may be 0 by chance. So the estimate is averaged with this one, which counts as so many
locations. On real crops of 38 locations it is 0.4."""
PRECISION_SAMPLES = 2
"""Precision also depends on how common the class is at the other locations, which varies as much as at these. So its variance counts twice."""


def correlation_within_locations(val: pd.DataFrame) -> float:
    """How alike the answers for a class's crops of one location are: 0 (as those of different locations) to 1 (all right or all wrong).

    The intraclass correlation of "the likeliest class is right", by analysis of variance, pooled over the classes, because each has few
    locations; averaged with ``PRIOR_CORRELATION``. It is 1 if it cannot be estimated: no class has crops at two locations, or no answer
    is wrong.

    Args:
        val: class_id, location and predicted of each crop.
    """
    right = (val["class_id"] == val["predicted"]).astype(float)
    group = val.groupby(["class_id", "location"]).ngroup()
    size, of_class = np.bincount(group), val["class_id"].groupby(group).first()
    groups, classes, crops = len(size), of_class.nunique(), len(val)
    if groups in {classes, crops}:
        return 1.0
    mean, class_mean = (right.groupby(by).transform("mean") for by in (group, val["class_id"]))
    between = ((mean - class_mean) ** 2).sum() / (groups - classes)
    within = ((right - mean) ** 2).sum() / (crops - groups)
    squares = pd.Series(size**2).groupby(of_class.to_numpy()).sum() / pd.Series(size).groupby(of_class.to_numpy()).sum()
    typical_size = (crops - squares.sum()) / (groups - classes)
    total = between + (typical_size - 1) * within
    if total <= 0:
        return 1.0
    estimate, known = float(np.clip((between - within) / total, 0, 1)), groups - classes
    return (known * estimate + PRIOR_LOCATIONS * PRIOR_CORRELATION) / (known + PRIOR_LOCATIONS)


def effective_number(crops: Floats, squares: Floats, correlation: float) -> Floats:
    """How many independent crops tell as much as ``crops`` that are alike within locations.

    Args:
        crops: numbers of crops.
        squares: for each, the sum over locations of the squared number of crops there.
        correlation: within locations, from 0 to 1.
    """
    crops = np.maximum(crops, 1)
    return np.asarray(crops / (1 + correlation * (np.maximum(squares, crops) / crops - 1)))


def lower_bound(share: Floats, number: Floats, confidence: float) -> Floats:
    """The one-sided lower bound of shares that were seen on so many independent crops (Clopper and Pearson)."""
    from scipy.special import betaincinv  # here, because it takes a tenth of a second and most runs find their thresholds in the store

    hits = share * number
    bound = betaincinv(np.maximum(hits, 1e-9), number - hits + 1, 1 - confidence)
    return np.asarray(np.where(hits > 0, bound, 0.0))


def before_the_first_failure(bound: Floats, number: Floats, aim: float, confidence: float) -> NDArray[np.bool_]:
    """Which thresholds, from high to low, are shown to reach an aim, although many are tried (fixed sequence testing).

    The sequence ends at the first threshold whose bound is below the aim. Those with too few crops to show the aim even
    without a mistake are left out at the beginning.
    """
    possible = lower_bound(np.ones(len(number)), number, confidence) >= aim
    failed = np.maximum.accumulate(possible & (bound < aim))
    return np.asarray((bound >= aim) & ~failed)
