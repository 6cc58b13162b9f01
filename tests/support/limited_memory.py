"""A limit on the memory of processes that a test starts: a control group, or a resource limit where none can be made."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")


class MemoryLimit(NamedTuple):
    """``enter`` is called in a new process, before its program starts. ``peak`` returns the most bytes that were in use at a time."""

    kind: str
    enter: Callable[[], None]
    peak: Callable[[], int]


@contextmanager
def limited_memory(size: int) -> Iterator[MemoryLimit]:
    """A limit of ``size`` bytes for a process and its children together; only for each of them where it is no control group."""
    group = _make_group(size)
    if group is None:
        yield MemoryLimit("RLIMIT_DATA", lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size)), lambda: 0)
        return
    peak = next(p for p in (group / "memory.max_usage_in_bytes", group / "memory.peak") if p.exists())
    try:
        yield MemoryLimit("control group", lambda: _enter(group), lambda: int(peak.read_text()))
    finally:
        _remove(group)


def _make_group(size: int) -> Path | None:
    """A group below this process's own with this limit; None if the system does not allow it."""
    text = Path("/proc/self/cgroup").read_text()
    for pattern, root, limit in ((r":memory:(.*)", CGROUPS / "memory", "memory.limit_in_bytes"), (r"^0::(.*)", CGROUPS, "memory.max")):
        if own := re.search(pattern, text, re.MULTILINE):
            group = root / own[1].lstrip("/") / f"animl-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                group.mkdir()
                with contextlib.suppress(OSError):
                    (group / limit).write_text(str(size))
                    return group
                group.rmdir()
    return None


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _remove(group: Path) -> None:
    """Remove a group whose processes are ending."""
    for _ in range(500):
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)
    raise AssertionError(f"{group} still has processes")
