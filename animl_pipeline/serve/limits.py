"""How much is let in at once, so that memory stays bounded: requests, their bytes, and the pictures being decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from animl_pipeline.serve.errors import Refusal

MAX_BODY = 6_000_000
"""SageMaker's own limit is 6 MB for a real-time endpoint, 4 MB for a serverless one."""
MAX_IN_HAND = 256
"""Requests being read, waiting or being answered; SageMaker sends at most 200 at once to a serverless endpoint."""
BYTES_IN_HAND = 256_000_000
OF_ITS_OWN = 400_000_000
"""Bytes that the program and a model of some ten million parameters take before the first picture."""
LEAST_FOR_IMAGES = 100_000_000
"""A machine too small for its model gets to say so by itself; an ordinary picture is tried all the same."""


class Limits(NamedTuple):
    """Bytes for the requests in hand, and for the pictures that are decoded at the same time."""

    requests: int
    images: int

    @classmethod
    def of(cls, memory: int) -> Limits:
        """What a machine with so many bytes of memory allows."""
        requests = min(BYTES_IN_HAND, memory // 8)
        return cls(requests, max(LEAST_FOR_IMAGES, memory - requests - OF_ITS_OWN))


class Door:
    """Counts what is in hand; all its calls come from the event loop's one thread."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._free_requests = max_requests
        self._free_bytes = max_bytes

    @contextmanager
    def location(self) -> Iterator[PathOrUrl]:
        """A request's place, given back at the end."""
        taken = PathOrUrl(self)
        try:
            yield taken
        finally:
            self._free_requests += taken.requests
            self._free_bytes += taken.bytes

    def take(self, requests: int, size: int) -> bool:
        """Whether there was room for it."""
        if self._free_requests < requests or self._free_bytes < size:
            return False
        self._free_requests -= requests
        self._free_bytes -= size
        return True


class PathOrUrl:
    """What one request holds of the door's room."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.requests = 0
        self.bytes = 0

    def enter(self) -> None:
        """Take a place.

        Raises:
            Refusal: 429, all are taken.
        """
        self._take(1, 0)

    def hold(self, size: int) -> None:
        """Take room for ``size`` more bytes.

        Raises:
            Refusal: 429, there is not enough.
        """
        self._take(0, size)

    def _take(self, requests: int, size: int) -> None:
        if not self._door.take(requests, size):
            raise Refusal(429, "as many requests as fit are in hand; ask again in a moment")
        self.requests += requests
        self.bytes += size
