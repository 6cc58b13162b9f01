"""What this machine gives the program: cores and memory, as a container's limits say, and memory handed back to the system."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""glibc's malloc.h."""


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may use: those it may run on, or fewer when its container's share of time is smaller; at least one."""
    cores = len(os.sched_getaffinity(0))
    quota, period = _numbers(cgroup / "cpu.max") or (_numbers(cgroup / "cpu/cpu.cfs_quota_us") + _numbers(cgroup / "cpu/cpu.cfs_period_us")) or (0, 0)
    return max(1, min(cores, round(quota / period))) if quota > 0 and period else cores


def usable_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of memory this process may use: the machine's, or fewer when its container's limit is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = _numbers(cgroup / "memory.max") or _numbers(cgroup / "memory/memory.limit_in_bytes")
    return min([machine, *limits])


def use_one_heap() -> None:
    """Let all threads share one heap, and keep in it for the next picture what the last has freed.

    Otherwise glibc gives each thread a heap of its own, and what one has freed helps no other: thousands of malformed
    requests took hundreds of megabytes. Other C libraries have no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 128 << 20)


def give_memory_back() -> None:
    """Return freed memory to the system: to be called now and then."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _numbers(path: Path) -> tuple[int, ...]:
    """The numbers of a file of limits; nothing when it is not there or says "max"."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(map(int, words)) if words and all(w.lstrip("-").isdigit() for w in words) else ()
