"""How this process keeps its memory: one heap for all threads, and a garbage collector that does not look all the time."""

from __future__ import annotations

import ctypes
import gc
import sys

ARENA_MAX = -8
"""M_ARENA_MAX of malloc.h."""

SELDOM = (20_000, 20, 50)
"""Python looks for garbage in cycles each time so many objects are new (700, 10, 10 by itself)."""


def share_one_heap() -> bool:
    """Have threads take memory from the main thread's heap, if none has begun yet; whether the C library lets us.

    A thread with a heap of its own gives large blocks back to the kernel at once and asks for them again, a batch after the
    other: a training in a thread took 8 % more CPU than in the main thread, and takes as much with one heap. A worker's runs
    have it from their environment (MALLOC_ARENA_MAX in deployments/prefect.yaml).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(ARENA_MAX, 1))


def collect_seldom() -> None:
    """Look for garbage in cycles less often.

    Prefect, pandas and torch load a million objects that stay for good, and Python would go through them a dozen times on the
    way: 0.8 of the 2.8 CPU s that loading them took.
    """
    gc.set_threshold(*SELDOM)


def keep_what_is_loaded() -> None:
    """Take what has been loaded so far for no garbage, also at the end, which comes 0.4 s earlier so.

    Not once torch is there: its bindings would then be called leaks when the process ends.
    """
    if "torch" not in sys.modules:
        gc.freeze()
