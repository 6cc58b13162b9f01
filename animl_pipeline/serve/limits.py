"""Limits of the endpoint: cores and memory of the container, requests and bytes at a time, the deadline of an answer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from animl_pipeline.serve.http_errors import CLIENT_CLOSED_REQUEST, RequestError

MAX_BODY = 6_000_000
"""Bytes of a request. SageMaker allows 6 MB for a real-time endpoint and 4 MB for a serverless one."""
MAX_REQUESTS = 256
"""Requests that are read, wait or are answered at the same time. SageMaker sends a serverless endpoint at most 200."""
MAX_OPEN_REQUEST_BYTES = 256_000_000
"""Bytes of all these requests together."""
PROGRAM_BYTES = 400_000_000
"""Memory of the program with a model of about ten million parameters, before the first image."""
MIN_IMAGE_BYTES = 100_000_000
"""Memory for images that is assumed in any case, so that a too small container still tries ordinary images."""
ANSWER_S = 50.0
"""Seconds for an answer after the body has arrived. SageMaker waits 60 s for it."""
CGROUP = Path("/sys/fs/cgroup")


class MemoryLimits(NamedTuple):
    """Bytes for all admitted requests together, and for all images that are decoded at the same time."""

    requests: int
    images: int

    @classmethod
    def for_memory(cls, memory: int) -> MemoryLimits:
        """The limits for a container with ``memory`` bytes."""
        requests = min(MAX_OPEN_REQUEST_BYTES, memory // 8)
        return cls(requests, max(MIN_IMAGE_BYTES, memory - requests - PROGRAM_BYTES))


class Admission:
    """Counts admitted requests and their bytes. Only the event loop's thread may call it."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._free_requests = max_requests
        self._free_bytes = max_bytes

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """An empty reservation. What it has reserved is free again at the end of the block."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self._free_requests += reservation.requests
            self._free_bytes += reservation.bytes

    def reserve(self, requests: int, size: int) -> bool:
        """Reserve so many requests and bytes; False if there is not enough left."""
        if self._free_requests < requests or self._free_bytes < size:
            return False
        self._free_requests -= requests
        self._free_bytes -= size
        return True


class Reservation:
    """What one request has reserved."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.requests = 0
        self.bytes = 0

    def add(self, size: int) -> None:
        """Reserve ``size`` more bytes, and the request itself at the first call.

        Raises:
            RequestError: 429, there is not enough left.
        """
        requests = 0 if self.requests else 1
        if not self._admission.reserve(requests, size):
            raise RequestError(429, "the endpoint is busy with as many requests as it can hold; try again in a moment")
        self.requests += requests
        self.bytes += size


class Deadline:
    """The end of the time for one request. The event loop cancels it; the thread that works on the request checks it between two steps."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._cancelled = False
        self._stop: Callable[[], None] = lambda: None

    def remaining(self) -> float:
        """Seconds until the end, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def cancel(self) -> None:
        """Say that the client has left, and stop the work inside :meth:`stopping`."""
        with self._lock:
            self._cancelled = True
            stop = self._stop
        stop()

    def check(self) -> None:
        """Return while there is time and somebody waits.

        Raises:
            RequestError: 499, the client disconnected; 503, the time is over.
        """
        if self._cancelled or self.remaining() == 0:
            raise self.error()

    def error(self) -> RequestError:
        """The error of a request that is not answered any more."""
        if self._cancelled:
            return RequestError(CLIENT_CLOSED_REQUEST, "the client disconnected before the answer")
        return RequestError(
            503, f"no answer within {self._seconds:g} s, because the endpoint is busy or the images are large; try again, or send fewer boxes"
        )

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Inside of the block, :meth:`cancel` calls ``stop``; at once, if it was called before."""
        with self._lock:
            self._stop = stop
            cancelled = self._cancelled
        if cancelled:
            stop()
        try:
            yield
        finally:
            with self._lock:
                self._stop = lambda: None


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
