"""Capture times of images: from the text of an export to ISO 8601, seconds and days."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ISO = r"\s*\d{4}-?[01]\d"
"""How a time of ISO 8601 begins."""
YEAR_FIRST = r"\s*(\d{4})[:/.](\d{1,2})[:/.](\d{1,2})(.*)"
"""2024:05:31 (EXIF), 2024/05/31, 2024.5.31, and the rest of the text."""
YEAR_LAST = r"\s*(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(.*)"
"""31/05/2024 or 05/31/2024, with -, / or ., and the rest of the text."""
CLOCK = r"[ T,]*(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))?\s*([aApP])?\.?[mM]?\.?\s*(Z|[+-]\d\d:?\d\d)?\s*"


class IsoTimes(NamedTuple):
    """Times as text.

    Attributes:
        texts: each time in ISO 8601's form; where it is not understood, as it was.
        ambiguous: bool [n], times of which nobody knows whether the day or the month comes first.
        unreadable: bool [n], texts that are no time.
    """

    texts: pd.Series
    ambiguous: NDArray[np.bool_]
    unreadable: NDArray[np.bool_]


def to_iso(texts: pd.Series) -> IsoTimes:
    """The times of one table's column in ISO 8601's form.

    A year may come first (2024-05-31, 2024:05:31, 2024/05/31) or last. If it comes last, the column itself must show whether the day or
    the month comes first, by a number above 12; otherwise the time is ambiguous and not guessed.
    """
    found = texts.astype(object)
    other = (texts != "") & ~texts.str.match(ISO)
    ambiguous, readable = np.zeros(len(texts), bool), np.array(~other)
    if other.any():
        first = texts[other].str.extract(rf"^{YEAR_FIRST}$")
        last = texts[other].str.extract(rf"^{YEAR_LAST}$")
        day_first = _day_is_first(last[0], last[2])
        day, month = (last[0], last[2]) if day_first else (last[2], last[0])
        year_first = _join(first[0], first[1], first[2], first[3])
        year_last = _join(last[3], month, day, last[4])
        unknown_order = last[0].notna() & (last[0] != last[2]) & (day_first is None)
        made = year_first.fillna(year_last)
        usable = made.notna() & ~unknown_order
        found.loc[made.index[usable]] = made[usable]
        readable |= found.index.isin(made.index[usable | unknown_order])
        ambiguous |= found.index.isin(made.index[unknown_order & made.notna()])
    return IsoTimes(found, ambiguous, ~readable)


def parse_times(texts: pd.Series) -> pd.Series:
    """Times of one table's column as UTC; NaT where a text is no time, or ambiguous. A time without an offset counts as UTC."""
    iso = to_iso(texts)
    return pd.to_datetime(iso.texts.where(~iso.ambiguous, ""), utc=True, format="ISO8601", errors="coerce")


def parse_seconds(taken: pd.Series) -> NDArray[np.float64]:
    """Seconds since 1970; NaN where the text is no time, or ambiguous. A time without an offset counts as UTC."""
    times = parse_times(taken)
    seconds = times.to_numpy(dtype="datetime64[ms]").astype(np.int64) / 1000
    return np.where(times.isna(), np.nan, seconds)


def parse_days(taken: pd.Series) -> NDArray[np.datetime64]:
    """The day on the camera's own clock; NaT where the text has none."""
    days = pd.to_datetime(to_iso(taken).texts.str.slice(0, 10), format="%Y-%m-%d", errors="coerce")
    return days.to_numpy(dtype="datetime64[D]")


def _day_is_first(one: pd.Series, two: pd.Series) -> bool | None:
    """Whether the day comes before the month, by numbers above 12; None where no number or both positions show it."""
    above = [bool((pd.to_numeric(number, errors="coerce") > 12).any()) for number in (one, two)]
    return above[0] if above[0] != above[1] else None


def _join(year: pd.Series, month: pd.Series, day: pd.Series, rest: pd.Series) -> pd.Series:
    """ISO texts; missing where the rest is not empty and not a time of day, or where the day is none of the calendar."""
    clock = rest.str.extract(rf"^{CLOCK}$")
    hour = pd.to_numeric(clock[0], errors="coerce")
    half = clock[3].str.lower()
    hour = hour.where(half.isna(), hour % 12 + 12 * (half == "p"))
    date = year + "-" + month.str.zfill(2) + "-" + day.str.zfill(2)
    time = "T" + hour.astype("Int64").astype("string").str.zfill(2) + ":" + clock[1] + ":" + clock[2].fillna("00") + clock[4].fillna("")
    text = (date + time.where(hour.notna(), "")).where(hour.notna() | (rest.str.strip() == ""))
    return text.where(pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True).notna()).astype(object)
