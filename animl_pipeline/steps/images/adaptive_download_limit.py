"""How many images are downloaded at a time: as many as the host answers well.

The limit doubles at first, and later grows by one after each round of answers. When many answers of a round fail (the host is busy,
resets connections or goes silent), it halves. When answers take much longer than the fastest round, the limit stays, because more
requests would only wait in a queue. A few failures among many answers are not a sign of load.
"""

from __future__ import annotations

import logging
import threading
import time

from animl_pipeline.storage.read_remote_files import LONG_PAUSE_S

log = logging.getLogger(__name__)

INITIAL_LIMIT = 8
MIN_ROUND = 8
"""A round has at least this many answers."""
FAILED_SHARE = 0.25
"""A round with this share of failures halves the limit."""
SLOWDOWN = 3.0
"""The limit stops growing when answers take this many times as long as in the fastest round."""


class AdaptiveLimit:
    """The limit of one host. Workers wait for their turn before each image, and record how the host answered.

    Attributes:
        value: how many workers may send requests now.
        last_contact: when the host last answered anything, by ``time.monotonic``; None before the first answer.
        host_gone: an image was given up because the host did not answer, and it has not answered since.
    """

    def __init__(self, maximum: int) -> None:
        self.value = min(INITIAL_LIMIT, maximum)
        self.last_contact: float | None = None
        self.host_gone = False
        self._maximum = maximum
        self._changed = threading.Condition()
        self._doubling = True
        self._fastest_s = float("inf")
        self._finished = False
        self._aborted = False
        self._next_log = 0.0
        self._begin_round()

    def wait_for_turn(self, worker: int) -> bool:
        """Wait until the worker with this number (0, 1, …) may send a request. False: nothing is left to request."""
        with self._changed:
            self._changed.wait_for(lambda: worker < self.value or self._finished)
            return not self._finished

    def record(self, seconds: float, *, failed: bool, connected: bool = True) -> None:
        """Count one answer.

        ``connected``: False: the host was not reached, which says nothing about its load.
        """
        with self._changed:
            if not connected:
                return
            self.last_contact, self.host_gone = time.monotonic(), False
            self._answers += 1
            self._failures += failed
            self._seconds += seconds
            if self._answers >= max(self.value, MIN_ROUND):
                self._end_round()

    def sleep(self, seconds: float, why: object = "") -> bool:
        """Wait before another try. False: the download was aborted. Long pauses are logged with their reason, now and then."""
        with self._changed:
            if seconds >= LONG_PAUSE_S and time.monotonic() >= self._next_log:
                self._next_log = time.monotonic() + seconds
                log.warning("%s; waiting %.0f s before the next try", why, seconds)
            return not self._changed.wait_for(lambda: self._aborted, timeout=seconds)

    def finish(self) -> None:
        """Start no more requests. Workers finish the image that they are downloading."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Start no more requests and no more retries."""
        with self._changed:
            self._finished = self._aborted = True
            self._changed.notify_all()

    def _begin_round(self) -> None:
        self._answers, self._failures, self._seconds = 0, 0, 0.0

    def _end_round(self) -> None:
        mean_s = self._seconds / self._answers
        if self._failures >= FAILED_SHARE * self._answers:
            self.value, self._doubling = max(1, self.value // 2), False
        elif mean_s > SLOWDOWN * self._fastest_s:
            self._doubling = False
        else:
            self.value = min(self._maximum, self.value * 2 if self._doubling else self.value + 1)
            self._changed.notify_all()
        if not self._failures:
            self._fastest_s = min(self._fastest_s, mean_s)
        self._begin_round()
