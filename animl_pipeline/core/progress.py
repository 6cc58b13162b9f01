"""How far a long step has come, told to whoever listens.

Rooms say ``with track("images", total) as step: … step()``; the command line listens and draws a bar, a Prefect task
listens and updates a progress artifact, a test listens to nothing. Like logging, there is one listener a process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are in all."""

_lock = threading.Lock()
_listener: Listener | None = None


def set_listener(listener: Listener | None) -> Listener | None:
    """Send all progress of this process to ``listener`` from now on (None: to nobody); who listened before comes back."""
    global _listener
    with _lock:
        before, _listener = _listener, listener
    return before


@contextmanager
def track(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Give a function that moves the progress of ``what`` on by n; safe to call from several threads.

    Args:
        what: A word or two for a person, such as "images of island".
        total: How many there are.
        done: How many were done before (a resumed step).
    """
    count = done

    def step(n: int = 1) -> None:
        nonlocal count
        with _lock:
            count += n
            if _listener is not None:
                _listener(what, count, total)

    step(0)
    yield step
