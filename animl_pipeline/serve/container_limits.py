"""Processor cores and memory that the container may use."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """CPU cores that this process may use, at least 1. A container's CPU quota counts, rounded to whole cores."""
    cores = len(os.sched_getaffinity(0))
    quota, period = _numbers(cgroup / "cpu.max") or (_numbers(cgroup / "cpu/cpu.cfs_quota_us") + _numbers(cgroup / "cpu/cpu.cfs_period_us")) or (0, 0)
    return max(1, min(cores, round(quota / period))) if quota > 0 and period else cores


def usable_memory(cgroup: Path = CGROUP) -> int:
    """Bytes of memory that this process may use: the machine's, or the container's limit if that is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = _numbers(cgroup / "memory.max") or _numbers(cgroup / "memory/memory.limit_in_bytes")
    return min([machine, *limits])


def _numbers(path: Path) -> tuple[int, ...]:
    """The numbers in a cgroup file; () if it does not exist or says "max"."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(map(int, words)) if words and all(w.lstrip("-").isdigit() for w in words) else ()
