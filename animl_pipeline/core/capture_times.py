"""Capture times of images: from the text of an export to seconds and days."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def parse_seconds(taken: pd.Series) -> NDArray[np.float64]:
    """Seconds since 1970; NaN where the text is not an ISO 8601 time. A time without an offset counts as UTC."""
    times = pd.to_datetime(_as_iso(taken), utc=True, format="ISO8601", errors="coerce")
    seconds = times.to_numpy(dtype="datetime64[ms]").astype(np.int64) / 1000
    return np.where(times.isna(), np.nan, seconds)


def parse_days(taken: pd.Series) -> NDArray[np.datetime64]:
    """The day on the camera's own clock; NaT where the text has none."""
    days = pd.to_datetime(_as_iso(taken).str.slice(0, 10), format="%Y-%m-%d", errors="coerce")
    return days.to_numpy(dtype="datetime64[D]")


def _as_iso(taken: pd.Series) -> pd.Series:
    """EXIF's days, such as 2024:05:31, in ISO 8601's form."""
    exif = taken.str.slice(4, 5) == ":"
    if not exif.any():
        return taken
    return taken.where(~exif, taken.str.slice(0, 4) + "-" + taken.str.slice(5, 7) + "-" + taken.str.slice(8))
