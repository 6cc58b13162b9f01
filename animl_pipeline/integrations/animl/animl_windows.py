"""Divide an Animl project into windows of capture time, each small enough for one export or one list of pages.

Animl streams exports of more than 18,000 images, and such files can be cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from animl_pipeline.core.frozen_record import Record
from animl_pipeline.integrations.animl.queries import iso_utc
from animl_pipeline.storage.read_remote_files import RemoteError

log = logging.getLogger(__name__)

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
"""Where open windows are halved as if they began and ended there."""
MIN_WINDOW = timedelta(seconds=2)
MAX_TIMEOUTS = 12
"""Counts that may time out before Animl is taken to be out of order."""


class Window(Record):
    """Images taken from ``start`` to ``end`` (exclusive; None: open), validated since ``since``, added since ``added_since`` (None: all)."""

    start: datetime | None = None
    end: datetime | None = None
    since: datetime | None = None
    added_since: datetime | None = None
    images: int = 0

    @property
    def key(self) -> str:
        """The window as text, without its number of images."""
        limits = (self.start, self.end, self.since, *([self.added_since] if self.added_since else []))
        return " ".join(iso_utc(t) if t else "-" for t in limits)

    def __str__(self) -> str:
        """For messages."""
        since = f", validated since {iso_utc(self.since)}" if self.since else ""
        since += f", added since {iso_utc(self.added_since)}" if self.added_since else ""
        return f"images taken {iso_utc(self.start) if self.start else 'at any time'} to {iso_utc(self.end) if self.end else 'any time'}{since}"

    def halves(self) -> tuple[Window, Window] | None:
        """The earlier and the later half; None for a window that is too narrow."""
        low, high = self.start or EARLIEST, self.end or LATEST
        if high - low < MIN_WINDOW:
            return None
        middle = (low + (high - low) / 2).replace(microsecond=0)
        return self.model_copy(update={"end": middle, "images": 0}), self.model_copy(update={"start": middle, "images": 0})

    def intersection(self, other: Window) -> Window | None:
        """The time that both windows cover; None where there is none."""
        start = max((t for t in (self.start, other.start) if t), default=None)
        end = min((t for t in (self.end, other.end) if t), default=None)
        return None if start and end and start >= end else Window(start=start, end=end)

    def contains(self, taken: str) -> bool:
        """Whether a capture time, as an export writes it, is in the window."""
        try:
            moment = datetime.fromisoformat(taken)
        except ValueError:
            return False
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return (self.start is None or moment >= self.start) and (self.end is None or moment < self.end)


Count = Callable[[Window], int]


def divide_into_windows(whole: Window, count: Count, max_images: int) -> tuple[list[Window], int]:
    """``whole`` as windows of at most ``max_images`` images in order of time, and the number of images in none of them.

    Empty windows are left out. A window that is too narrow to be halved stays as it is. Images without a capture time are in
    no window. A count that times out counts as too many images.

    Raises:
        RemoteError: Animl does not answer, or refuses.
    """
    timeouts = 0

    def count_or_none(window: Window) -> int | None:
        nonlocal timeouts
        try:
            return count(window)
        except RemoteError as e:
            timeouts += 1
            if e.reason != "timed_out" or timeouts > MAX_TIMEOUTS:
                raise
            return None

    total = count_or_none(whole)
    windows: list[Window] = []
    todo = [(whole, total)]
    while todo:
        window, images = todo.pop()
        halves = window.halves() if images is None or images > max_images else None
        if halves is not None:
            todo.extend((half, count_or_none(half)) for half in reversed(halves))
        elif images != 0:
            windows.append(window.model_copy(update={"images": images or 0}))
    log.info("%s images to export, in %d windows", "?" if total is None else f"{total:,}", len(windows))
    return windows, max(0, (total or 0) - sum(w.images for w in windows))
