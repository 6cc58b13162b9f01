"""How far long steps have come, as progress bars among a run's artifacts in Prefect's UI."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException

from animl_pipeline.core import progress

log = logging.getLogger("animl_pipeline.flows.bars")

EVERY_S = 5.0
"""A bar moves so often; what takes less never gets one."""


@contextmanager
def bars_in_ui() -> Iterator[None]:
    """Show the rooms' progress in Prefect's UI while the block runs, beside whoever listens already."""
    bars = _Bars()
    before = progress.listen(None)

    def both(what: str, done: int, total: int) -> None:
        bars.note(what, done, total)
        if before is not None:
            before(what, done, total)

    progress.listen(both)
    end = threading.Event()
    # the thread needs this run's context, so that the bars are this run's
    teller = threading.Thread(target=contextvars.copy_context().run, args=(bars.tell_until, end), name="bars", daemon=True)
    teller.start()
    try:
        yield
    finally:
        progress.listen(before)
        end.set()
        teller.join()


class _Bars:
    """What is under way, and the bars that show it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: dict[str, tuple[int, int]] = {}
        self._shown: dict[str, tuple[UUID, tuple[int, int]]] = {}

    def note(self, what: str, done: int, total: int) -> None:
        with self._lock:
            self._now[what] = (done, total)

    def tell_until(self, end: threading.Event) -> None:
        """Move the bars now and then, and once more at the end. A server that does not answer costs bars, not the run."""
        while not end.wait(EVERY_S):
            self._tell(new_ones=True)
        self._tell(new_ones=False)

    def _tell(self, *, new_ones: bool) -> None:
        with self._lock:
            now = dict(self._now)
        try:
            for what, (done, total) in now.items():
                self._show(what, done, total, new_ones=new_ones)
        except (httpx.HTTPError, PrefectException) as e:
            log.debug("progress is not shown: %s", e)

    def _show(self, what: str, done: int, total: int, *, new_ones: bool) -> None:
        share = 100.0 * done / total if total else 100.0
        known = self._shown.get(what)
        if known is not None and known[1] != (done, total):
            update_progress_artifact(known[0], progress=share, description=_text(what, done, total))
            self._shown[what] = (known[0], (done, total))
        elif known is None and new_ones and done < total:
            made = create_progress_artifact(share, key=_key(what), description=_text(what, done, total))
            self._shown[what] = (made, (done, total))  # type: ignore[assignment]  # sync here


def _text(what: str, done: int, total: int) -> str:
    return f"{what}: {done:,} of {total:,}"


def _key(what: str) -> str:
    return "progress-" + re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")
