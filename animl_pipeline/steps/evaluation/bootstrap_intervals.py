"""95 % intervals by bootstrap over places: whole places are drawn again, since pictures of one camera are not independent.

Places are drawn with replacement, as many as there are, ``RESAMPLES`` times with a fixed seed; a figure's interval holds the
middle 95 % of its values over the draws (percentile bootstrap of clusters; Cameron, Gelbach and Miller 2008). A picture whose
place is unknown is a place of its own. Where a class's examples are of fewer than two places there is nothing to draw: no
interval. With few places intervals are too narrow rather than too wide.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.records import Interval

RESAMPLES = 1000
SEED = 0
CELLS = 4_000_000
"""Numbers held at a time while average precision is summed for many draws."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Draws:
    """Places drawn again and again: how often each place is in each draw."""

    def __init__(self, rows: pd.DataFrame) -> None:
        """Number the places of ``rows`` (``place``, and ``source`` and ``image_id`` where it is unknown) and draw them."""
        self.location = _numbered(rows)
        self.locations = int(self.location.max()) + 1 if len(rows) else 0
        draws = np.random.default_rng(SEED).multinomial(max(self.locations, 1), [1 / max(self.locations, 1)] * max(self.locations, 1), RESAMPLES)
        self.times: Floats = draws.astype(np.float64)

    def sums(self, values: Floats) -> Floats:
        """Values [rows, …] summed over the rows of each draw: [draws, …]."""
        flat = values.reshape(len(values), -1)
        of_locations = np.stack([np.bincount(self.location, column, self.locations) for column in flat.T], axis=1)
        return np.asarray((self.times @ of_locations).reshape(-1, *values.shape[1:]))

    def confusions(self, truth: Ints, named: Ints, classes: int) -> Floats:
        """A confusion matrix for each draw: [draws, classes, classes]."""
        cell = (self.location * classes + truth) * classes + named
        of_locations = np.bincount(cell, minlength=self.locations * classes * classes).astype(np.float64)
        return np.asarray((self.times @ of_locations.reshape(self.locations, -1)).reshape(-1, classes, classes))

    def average_precisions(self, probability: Floats, is_one: NDArray[np.bool_]) -> Floats:
        """The average precision of one class in each draw, NaN in draws without an example."""
        order = np.argsort(-probability, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
        location, hit = self.location[order], is_one[order].astype(np.float64)
        found = np.empty(len(self.times))
        step = max(1, CELLS // max(1, len(order)))
        for start in range(0, len(found), step):
            times = self.times[start : start + step][:, location]
            named, hits = np.cumsum(times, axis=1)[:, ends], np.cumsum(times * hit, axis=1)[:, ends]
            gained = np.diff(hits, axis=1, prepend=0.0)
            with np.errstate(invalid="ignore", divide="ignore"):
                found[start : start + step] = np.where(gained > 0, gained * hits / named, 0).sum(axis=1) / hits[:, -1]
        return found

    def locations_of(self, mask: NDArray[np.bool_]) -> int:
        """How many places hold a row of these."""
        return len(np.unique(self.location[mask]))


def rates(confusions: Floats) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 [draws, classes] of confusion matrices [draws, classes, classes].

    As in the scores, a class that is never named has precision 0; one that a draw does not hold has NaN everywhere.
    """
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    there, named = confusions.sum(axis=2), confusions.sum(axis=1)
    held = there > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(held, np.where(named > 0, hits / named, 0.0), np.nan)
        recall = np.where(held, hits / there, np.nan)
        f1 = np.where(held, 2 * hits / (there + named), np.nan)
    return precision, recall, f1


def mean_of_held(values: Floats) -> Floats:
    """The mean over the classes that each draw holds: [draws]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any class: NaN, and left out later
        return np.asarray(np.nanmean(values, axis=1))


def interval(values: Floats, locations: int) -> Interval | None:
    """The middle 95 % of values over the draws, None with fewer than two places."""
    held = values[np.isfinite(values)]
    if locations < 2 or not len(held):
        return None
    low, high = np.percentile(held, [2.5, 97.5])
    return float(low), float(high)


def _numbered(rows: pd.DataFrame) -> Ints:
    """A number for each row's place; a picture without a place has one of its own."""
    known = rows["location"].astype(str)
    if (known == "").any() and "image_id" in rows:
        known = known.where(known != "", "\x00" + rows["source"].astype(str) + "\x00" + rows["image_id"].astype(str))
    return np.asarray(pd.factorize(known, sort=True)[0], np.int64)
