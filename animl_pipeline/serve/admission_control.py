"""Keep memory bounded: admit requests only while their number, their bytes and the images being decoded stay below limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from animl_pipeline.serve.http_errors import RequestError

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
