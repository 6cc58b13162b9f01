"""95 % intervals by bootstrap over locations.

Images of one camera are not independent, so whole locations are drawn with replacement (percentile bootstrap of clusters; Cameron,
Gelbach and Miller 2008). The seed is fixed. An image without a known location counts as a location of its own. If a class has
examples at fewer than two locations, it has no interval. With few locations the intervals are too narrow.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.evaluation_results import Interval

RESAMPLES = 1000
SEED = 0
MAX_CELLS = 4_000_000
"""Numbers in memory at a time while average precision is computed for many resamples."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class BootstrapDraws:
    """Resamples of the locations of some crops. Statistics come as [1 + RESAMPLES, …]: first of the crops themselves, then of each resample.

    Attributes:
        location: number of each row's location.
        locations: how many locations there are.
        weights: how often each location is in each resample, [1 + RESAMPLES, locations]; the first row is 1.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        """Draw the locations of ``rows``: column ``location``, and ``source`` and ``image_id`` where it is empty."""
        self.location = _location_numbers(rows)
        self.locations = int(self.location.max()) + 1 if len(rows) else 0
        size = max(self.locations, 1)
        draws = np.random.default_rng(SEED).multinomial(size, [1 / size] * size, RESAMPLES)
        self.weights: Floats = np.concatenate([np.ones((1, size)), draws])

    def sums(self, values: NDArray[np.bool_] | Floats) -> Floats:
        """The sum of one value per row over the rows of each resample."""
        return np.asarray(self.weights @ np.bincount(self.location, values.astype(np.float64), self.weights.shape[1]))

    def confusion_matrices(self, truth: Ints, predicted: Ints, classes: int) -> Floats:
        """Confusion matrices [1 + RESAMPLES, classes, classes], rows by true class."""
        cell = (self.location * classes + truth) * classes + predicted
        by_location = np.bincount(cell, minlength=self.locations * classes * classes).astype(np.float64)
        return np.asarray((self.weights @ by_location.reshape(self.locations, -1)).reshape(-1, classes, classes))

    def average_precisions(self, probability: Floats, is_class: NDArray[np.bool_]) -> Floats:
        """Average precision of one class against the rest, as scikit-learn computes it; NaN without an example."""
        order = np.argsort(-probability, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
        location, hit = self.location[order], is_class[order].astype(np.float64)
        found = np.empty(len(self.weights))
        step = max(1, MAX_CELLS // max(1, len(order)))
        for start in range(0, len(found), step):
            weights = self.weights[start : start + step][:, location]
            predicted, hits = np.cumsum(weights, axis=1)[:, ends], np.cumsum(weights * hit, axis=1)[:, ends]
            gained = np.diff(hits, axis=1, prepend=0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                found[start : start + step] = np.where(gained > 0, gained * hits / predicted, 0).sum(axis=1) / hits[:, -1]
        return found

    def count_locations(self, mask: NDArray[np.bool_]) -> int:
        """How many locations have a row of the mask."""
        return len(np.unique(self.location[mask]))


def precision_recall_f1(confusions: Floats) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 [draws, classes] of confusion matrices [draws, classes, classes].

    Precision is 0 for a class that is never predicted. All three are NaN for a class without examples.
    """
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    examples, predicted = confusions.sum(axis=2), confusions.sum(axis=1)
    present = examples > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(present, np.where(predicted > 0, hits / predicted, 0.0), np.nan)
        recall = np.where(present, hits / examples, np.nan)
        f1 = np.where(present, 2 * hits / (examples + predicted), np.nan)
    return precision, recall, f1


def accuracies(confusions: Floats) -> Floats:
    """The share of right predictions [draws] of confusion matrices [draws, classes, classes]."""
    return np.asarray(np.trace(confusions, axis1=1, axis2=2) / np.maximum(confusions.sum(axis=(1, 2)), 1))


def mean_over_present_classes(values: Floats) -> Floats:
    """The mean over the classes that have examples in a draw: [draws] of [draws, classes]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any class gives NaN, which percentile_interval drops
        return np.asarray(np.nanmean(values, axis=1))


def percentile_interval(values: Floats, locations: int) -> Interval | None:
    """The middle 95 % of ``values[1:]``, the values in the resamples; None with fewer than two locations."""
    resampled = values[1:][np.isfinite(values[1:])]
    if locations < 2 or not len(resampled):
        return None
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def _location_numbers(rows: pd.DataFrame) -> Ints:
    names = rows["location"].astype(str)
    if (names == "").any() and "image_id" in rows:
        names = names.where(names != "", "\x00" + rows["source"].astype(str) + "\x00" + rows["image_id"].astype(str))
    return np.asarray(pd.factorize(names, sort=True)[0], np.int64)
