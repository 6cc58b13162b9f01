"""Progress bars of long steps among a run's artifacts in Prefect's UI."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from animl_pipeline.core import progress

log = logging.getLogger("animl_pipeline.flows.progress")

UPDATE_EVERY_S = 5.0
"""Seconds between two updates. What takes less time never gets a bar."""


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the steps' progress in Prefect's UI while the block runs. A listener that was set before is still called."""
    bars = _Bars()
    listener_before = progress.set_listener(None)

    def listen(what: str, done: int, total: int) -> None:
        bars.note(what, done, total)
        if listener_before is not None:
            listener_before(what, done, total)

    progress.set_listener(listen)
    end = threading.Event()
    # the thread needs this run's context, so that the bars belong to this run
    thread = threading.Thread(target=contextvars.copy_context().run, args=(bars.update_until, end), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        progress.set_listener(listener_before)
        end.set()
        thread.join()


def describe_time_left(seconds: float, done: int, left: int) -> str:
    """``; about 3 min left`` for what is left, if so much was done in so many seconds; "" if that cannot be said yet, or nothing is left."""
    if done < 1 or left < 1:
        return ""
    minutes = seconds / done * left / 60
    return f"; about {minutes / 60:.1f} h left" if minutes >= 90 else f"; about {max(1, round(minutes))} min left"


class _Bars:
    """The progress of each thing under way, and the artifact that shows it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: dict[str, tuple[int, int]] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._shown: dict[str, tuple[UUID, tuple[int, int]]] = {}

    def note(self, what: str, done: int, total: int) -> None:
        with self._lock:
            self._begun.setdefault(what, (time.monotonic(), done))
            self._progress[what] = (done, total)

    def update_until(self, end: threading.Event) -> None:
        """Update the artifacts every few seconds, and once more at the end. If the server does not answer, the run goes on."""
        while not end.wait(UPDATE_EVERY_S):
            self._update(new_ones=True)
        self._update(new_ones=False)

    def _update(self, *, new_ones: bool) -> None:
        with self._lock:
            now = dict(self._progress)
        try:
            for what, (done, total) in now.items():
                self._show(what, done, total, new_ones=new_ones)
        except (httpx.HTTPError, PrefectException) as e:
            log.debug("progress is not shown: %s", e)

    def _show(self, what: str, done: int, total: int, *, new_ones: bool) -> None:
        percent = 100.0 * done / total if total else 100.0
        began, done_then = self._begun[what]
        text = f"{what}: {done:,} of {total:,}{describe_time_left(time.monotonic() - began, done - done_then, total - done)}"
        shown = self._shown.get(what)
        if shown is not None and shown[1] != (done, total):
            update_progress_artifact(shown[0], progress=percent, description=text)
            self._shown[what] = (shown[0], (done, total))
        elif shown is None and new_ones and done < total:
            key = "progress-" + re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")
            created = create_progress_artifact(percent, key=key, description=text)
            self._shown[what] = (created, (done, total))  # type: ignore[assignment]  # a coroutine only in async code
