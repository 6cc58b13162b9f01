"""Capture times of images: from the text of an export to ISO 8601, seconds and days."""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ISO = r"\s*\d{4}-?[01]\d"
"""How a time of ISO 8601 begins."""
YEAR_FIRST = r"\s*(\d{4})[-:/.](\d{1,2})[-:/.](\d{1,2})(.*)"
"""2024:05:31 (EXIF), 2024/05/31, 2024.5.31, 2024-5-31, and the rest of the text."""
YEAR_LAST = r"\s*(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(.*)"
"""31/05/2024 or 05/31/2024, with -, / or ., and the rest of the text."""
CLOCK = r"[ T,]*(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d+)?))?\s*([aApP])?\.?[mM]?\.?\s*(Z|UTC|GMT|[+-]\d\d:?\d\d)?\s*"


class IsoTimes(NamedTuple):
    """Times as text.

    Attributes:
        texts: each time in ISO 8601's form; where it is not understood, as it was.
        ambiguous: bool [n], times of which it is not known whether the day or the month comes first.
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
    values = texts.to_numpy(object)
    other = np.flatnonzero(np.asarray((texts != "") & ~_is_iso(texts), bool))
    read = {text: _read(text) for text in dict.fromkeys(values[other].tolist())}
    day_first = _day_is_first([parts for parts in read.values() if isinstance(parts, _YearLast)])
    ambiguous, unreadable = np.zeros(len(values), bool), np.zeros(len(values), bool)
    found = values.copy()
    for i in other:
        parts = read[values[i]]
        if isinstance(parts, _YearLast):
            ambiguous[i] = day_first is None and parts.one != parts.two
            parts = parts.in_order(day_first is not False)
        unreadable[i] = not parts
        found[i] = values[i] if ambiguous[i] or not parts else parts
    return IsoTimes(pd.Series(found, texts.index, dtype=texts.dtype), ambiguous, unreadable & ~ambiguous)


def _is_iso(texts: pd.Series) -> pd.Series:
    """Whether each text is a time in ISO 8601's form; one that only begins like it, such as 2024-06-31 or 2024-05-31 10:00 PM, is not."""
    begins = texts.str.match(ISO)
    return begins & pd.to_datetime(texts.where(begins, ""), utc=True, format="ISO8601", errors="coerce").notna()


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


class _YearLast(NamedTuple):
    """A date whose year comes last, with the time of day in ISO's form."""

    one: int
    two: int
    year: str
    clock: str

    def in_order(self, day_first: bool) -> str:
        """The time as ISO text; "" where it is none of the calendar."""
        day, month = (self.one, self.two) if day_first else (self.two, self.one)
        return _iso(self.year, month, day, self.clock)


def _read(text: str) -> str | _YearLast:
    """A time that is none of ISO 8601: as ISO text, as parts whose order is not known yet, or "" where it is no time."""
    first, last = re.fullmatch(YEAR_FIRST, text), re.fullmatch(YEAR_LAST, text)
    rest = first[4] if first else last[5] if last else ""
    clock = re.fullmatch(CLOCK, rest)
    if not clock and rest.strip():
        return ""
    time = _iso_clock(*clock.groups()) if clock else ""
    if last:
        return _YearLast(int(last[1]), int(last[3]), last[4], time)
    return _iso(first[1], int(first[2]), int(first[3]), time) if first else ""


def _iso_clock(hour: str, minute: str, second: str | None, half: str | None, zone: str | None) -> str:
    hours = int(hour) if half is None else int(hour) % 12 + 12 * (half in "pP")
    return f"T{hours:02}:{minute}:{second or '00'}{'Z' if zone in {'UTC', 'GMT'} else zone or ''}"


def _iso(year: str, month: int, day: int, clock: str) -> str:
    """The text, if it is a time of the calendar; else ""."""
    text = f"{year}-{month:02}-{day:02}{clock}"
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return ""
    return text


def _day_is_first(dates: list[_YearLast]) -> bool | None:
    """Whether the day comes before the month, by numbers above 12; None where no number or both positions show it."""
    one, two = any(d.one > 12 for d in dates), any(d.two > 12 for d in dates)
    return one if one != two else None
