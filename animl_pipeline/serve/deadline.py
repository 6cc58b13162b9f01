"""When a request must be answered, and whether its client still waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from animl_pipeline.serve.http_errors import CLIENT_CLOSED_REQUEST, RequestError

ANSWER_S = 50.0
"""Seconds for an answer after the body has arrived. SageMaker waits 60 s for it."""


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
