"""Ends a program when the one that started it is gone, however that one died, so that no orphan keeps a port."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def watch_parent(parent: int, gone: Callable[[], None], every_s: float = 0.25) -> None:
    """Call ``gone`` from a thread of its own as soon as this process's parent is no longer ``parent``.

    The parent hands its own process id on, so that a parent that died before this call is noticed as well.
    """

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(every_s)
        gone()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
