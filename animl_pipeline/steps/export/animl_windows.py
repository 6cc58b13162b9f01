"""Windows of capture time, each small enough for one export."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from animl_pipeline.core.records import Record
from animl_pipeline.integrations.animl.queries import iso
from animl_pipeline.storage.remote_files import RemoteError

log = logging.getLogger(__name__)


EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
NARROWEST = timedelta(seconds=2)
TIMEOUTS = 12
"""Counts that may time out before Animl is taken to be out of order."""


class Window(Record):
    """Images taken from ``start`` to ``end`` (exclusive; None: open) that were validated since ``since`` (None: all)."""

    start: datetime | None = None
    end: datetime | None = None
    since: datetime | None = None
    images: int = 0

    @property
    def key(self) -> str:
        """The window as text, without what changes from one look to the next."""
        return " ".join(iso(t) if t else "-" for t in (self.start, self.end, self.since))

    def __str__(self) -> str:
        """For a person."""
        since = f", validated since {iso(self.since)}" if self.since else ""
        return f"images taken {iso(self.start) if self.start else 'at any time'} to {iso(self.end) if self.end else 'any time'}{since}"

    def halves(self) -> tuple[Window, Window] | None:
        """Its earlier and its later half, or None where it is too narrow."""
        low, high = self.start or EARLIEST, self.end or LATEST
        if high - low < NARROWEST:
            return None
        middle = (low + (high - low) / 2).replace(microsecond=0)
        return self.model_copy(update={"end": middle, "images": 0}), self.model_copy(update={"start": middle, "images": 0})

    def meets(self, other: Window) -> Window | None:
        """The time that both cover, if any."""
        start = max((t for t in (self.start, other.start) if t), default=None)
        end = min((t for t in (self.end, other.end) if t), default=None)
        return None if start and end and start >= end else Window(start=start, end=end)

    def holds(self, taken: str) -> bool:
        """Whether a capture time as an export writes it lies in the window."""
        try:
            moment = datetime.fromisoformat(taken)
        except ValueError:
            return False
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return (self.start is None or moment >= self.start) and (self.end is None or moment < self.end)


Count = Callable[[Window], int]


def planned_windows(whole: Window, count: Count, limit: int) -> tuple[list[Window], int]:
    """``whole`` as windows of at most ``limit`` images in order of time, and how many images lie in none of them.

    Empty windows are left out; one that cannot be halved any more stays as it is. Images without a capture time lie in
    no window.

    Raises:
        RemoteError: Animl cannot be asked.
    """
    patience = _Patience(count)
    total = patience.ask(whole)
    windows: list[Window] = []
    todo = [(whole, total)]
    while todo:
        window, images = todo.pop()
        halves = window.halves() if images is None or images > limit else None
        if halves is not None:
            todo.extend((half, patience.ask(half)) for half in reversed(halves))
        elif images != 0:
            windows.append(window.model_copy(update={"images": images or 0}))
    outside = max(0, (total or 0) - sum(w.images for w in windows))
    log.info("%s images to export, in %d windows", "?" if total is None else f"{total:,}", len(windows))
    return windows, outside


class _Patience:
    """Counts; a window that is too large to be counted in Animl's 30 s counts as too large to be exported: None."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self.timeouts = 0

    def ask(self, window: Window) -> int | None:
        try:
            return self.count(window)
        except RemoteError as e:
            self.timeouts += 1
            if e.reason != "timed_out" or self.timeouts > TIMEOUTS:
                raise
            return None
