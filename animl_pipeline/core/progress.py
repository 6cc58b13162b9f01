"""Progress of long steps: a step counts what it has done, and one listener of the process shows it.

A step writes ``with track("images", total) as advance: … advance(1)``. The command line listens and draws a bar; a Prefect task
listens and updates a progress artifact. Without a listener nothing happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""

_lock = threading.Lock()
_listener: Listener | None = None


def set_listener(listener: Listener | None) -> Listener | None:
    """Send all progress of this process to ``listener`` from now on (None: to none). Returns the previous listener."""
    global _listener
    with _lock:
        previous, _listener = _listener, listener
    return previous


@contextmanager
def track(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function that adds n to the progress of ``what``; several threads may call it.

    ``what``: a word or two for people, such as "images of island". ``done``: how many were done before, in a step that continues.
    """
    count = done

    def advance(n: int = 1) -> None:
        nonlocal count
        with _lock:
            count += n
            if _listener is not None:
                _listener(what, count, total)

    advance(0)
    yield advance
