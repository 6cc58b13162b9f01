"""When a picture was taken: seconds and days from the text of an export."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.steps.splits.grouping import Codes


def moments_of(taken: pd.Series) -> NDArray[np.float64]:
    """Seconds since 1970; NaN where the text is no ISO 8601 time. A time without an offset counts as UTC."""
    times = pd.to_datetime(_iso(taken), utc=True, format="ISO8601", errors="coerce")
    seconds = times.to_numpy(dtype="datetime64[ms]").astype(np.int64) / 1000
    return np.where(times.isna(), np.nan, seconds)


def days_of(taken: pd.Series) -> NDArray[np.datetime64]:
    """The day on the camera's own clock; NaT where the text has none."""
    days = pd.to_datetime(_iso(taken).str.slice(0, 10), format="%Y-%m-%d", errors="coerce")
    return days.to_numpy(dtype="datetime64[D]")


def before(days: NDArray[np.datetime64], day: datetime.date | None) -> NDArray[np.bool_]:
    """Which are before a day; an unknown day is not."""
    if day is None:
        return np.zeros(len(days), bool)
    return np.asarray(days < np.datetime64(day))


def from_then_on(days: NDArray[np.datetime64], day: datetime.date | None) -> NDArray[np.bool_]:
    """Which are on a day or later; an unknown day is not."""
    if day is None:
        return np.zeros(len(days), bool)
    return np.asarray(days >= np.datetime64(day))


def bursts_of(source: pd.Series, moment: NDArray[np.float64], seconds: float) -> Codes:
    """Runs of pictures of a source with at most so many seconds from one to the next; -1 where the time is unknown."""
    timed = np.flatnonzero(~np.isnan(moment))
    code = pd.factorize(source)[0][timed]
    order = np.lexsort((moment[timed], code))
    new = (np.diff(code[order], prepend=-1) != 0) | (np.diff(moment[timed][order], prepend=-np.inf) > seconds)
    found = np.full(len(moment), -1, np.int64)
    found[timed[order]] = np.cumsum(new) - 1
    return found


def _iso(taken: pd.Series) -> pd.Series:
    """EXIF's way to write a day, 2024:05:31, as ISO 8601 has it."""
    exif = taken.str.slice(4, 5) == ":"
    if not exif.any():
        return taken
    return taken.where(~exif, taken.str.slice(0, 4) + "-" + taken.str.slice(5, 7) + "-" + taken.str.slice(8))
