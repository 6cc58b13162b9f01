"""What a look at unreviewed images adds to the monitor: suspected strangers, the drift of the embedding, and the next review list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.frozen_record import Record
from animl_pipeline.inference.bootstrap_intervals import BootstrapDraws, percentile_interval

MIN_ANIMALS, MIN_LOCATIONS = 30, 3
"""With fewer recent animals or locations, nothing is said of the embedding."""
DRIFT = 0.5
"""An alarm: the whole 95 % interval of the mean distance lies so many spreads above what is usual."""


class Stranger(Record):
    """An animal unlike all that the model learnt from. ``crop`` is a data URI; "" where the image is not shown."""

    image_id: str
    location: str
    taken: str
    likeliest: str
    link: str
    crop: str = ""


class EmbeddingDrift(Record):
    """The mean distance of recent animals to the nearest class that the model learnt, in spreads of known animals' distances.

    Attributes:
        animals: how many recent ones.
        mean, low, high: the mean, and its 95 % interval over locations.
        usual: the same of the first looks at this version; None while they are too few.
        raised_at: the day of the alarm that lasts; "" for none.
    """

    animals: int
    mean: float
    low: float
    high: float
    usual: float | None = None
    raised_at: str = ""


class UnreviewedLook(Record):
    """What was seen.

    Attributes:
        said: why nothing was looked at; "" if it was.
        strangers: the strangest first.
        drift: None where too few recent animals were at hand.
        listed: number of images on the next review list.
        list_csv, list_page: the list as CSV and as HTML.
    """

    said: str = "Strangers and the embedding were not looked at: monitor.review_images is 0."
    strangers: tuple[Stranger, ...] = ()
    drift: EmbeddingDrift | None = None
    listed: int = 0
    list_csv: str = ""
    list_page: str = ""

    def drift_sentence(self) -> str:
        """What is known of the embedding, in one sentence."""
        if self.said:
            return self.said
        if self.drift is None:
            return f"The embedding was not judged: fewer than {MIN_ANIMALS} recent animals at {MIN_LOCATIONS} locations were at hand."
        now = f"{self.drift.mean:.2f} spreads ({self.drift.low:.2f} to {self.drift.high:.2f}, {self.drift.animals:,} recent animals)"
        usual = "what is usual is not known yet" if self.drift.usual is None else f"usually {self.drift.usual:.2f}"
        alarm = f": an alarm since {self.drift.raised_at}" if self.drift.raised_at else ""
        return f"Distance of the images to those of the training: {now}, {usual}{alarm}."


def measure_drift(
    animals: pd.DataFrame, distances: NDArray[np.float64], before: Sequence[Mapping[str, float | str]], reference: int, day: date
) -> EmbeddingDrift | None:
    """The drift of recent animals; None with too few of them.

    Args:
        animals: ``source, image_id, location`` of each.
        distances: [n], in spreads of known animals' distances.
        before: the earlier looks at this version, in order of time: ``animals, mean, raised_at``.
        reference: the first looks with so many animals together show what is usual.
        day: of this look.
    """
    draws = BootstrapDraws(animals)
    if len(animals) < MIN_ANIMALS or draws.locations < MIN_LOCATIONS:
        return None
    means = draws.sums(distances) / draws.sums(np.ones(len(animals)))
    low, high = percentile_interval(means, draws.locations) or (float(means[0]), float(means[0]))
    usual = _usual(before, reference)
    raised = "" if usual is None or low - usual <= DRIFT else str(before[-1]["raised_at"] or day)
    return EmbeddingDrift(animals=len(animals), mean=float(means[0]), low=low, high=high, usual=usual, raised_at=raised)


def _usual(before: Sequence[Mapping[str, Any]], reference: int) -> float | None:
    """The mean of the first looks that have ``reference`` animals together; None while there are fewer."""
    total = weighted = 0.0
    for look in before:
        total, weighted = total + float(look["animals"]), weighted + float(look["animals"]) * float(look["mean"])
        if total >= reference:
            return weighted / total
    return None
