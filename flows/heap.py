"""One heap for all threads, where the C library is glibc: tasks run in threads, and a training in a thread costs less so."""

from __future__ import annotations

import ctypes

ARENA_MAX = -8
"""M_ARENA_MAX of malloc.h."""


def share_one_heap() -> bool:
    """Have threads take memory from the main thread's heap, if none has begun yet; whether the C library lets us.

    A thread with a heap of its own gives large blocks back to the kernel at once and asks for them again, a batch after the
    other: a training in a thread took 8 % more CPU than in the main thread, and takes as much with one heap. A worker's runs
    have it from their environment (MALLOC_ARENA_MAX in deployments/prefect.yaml).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(ARENA_MAX, 1))
