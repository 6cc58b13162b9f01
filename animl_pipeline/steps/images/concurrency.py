"""How many pictures are asked for at a time: as many as a host answers well.

The width grows while answers come well: it doubles at first, later it grows by one for each round of answers. When many of a
round fail (a host that says it is busy, resets or falls silent) it halves; when answers take much longer than they did
at best, more askers would only wait in a queue, and it stays. A few faults among many answers are not a sign of load.
"""

from __future__ import annotations

import threading
import time

FIRST = 8
SHORTEST_ROUND = 8
TROUBLED = 0.25
"""A round with this share of faults halves the width."""
QUEUED = 3.0
"""Answers that take this many times as long as at best: the host, the line or this machine is full."""


class Pace:
    """The width of one host's way; workers ask for leave before each picture and tell how it went."""

    def __init__(self, most: int) -> None:
        self.width = min(FIRST, most)
        self._most = most
        self._changed = threading.Condition()
        self._doubling = True
        self._best_s = float("inf")
        self._begin_round()
        self.contact: float | None = None
        """When the host last answered anything, by time.monotonic."""
        self.gone = False
        """A picture was given up because nobody was there, and nobody has answered since."""
        self._finished = False
        self._aborted = False

    def may_ask(self, worker: int) -> bool:
        """Wait until the worker of this number (0, 1, …) is among those who ask; False when there is nothing left to ask for."""
        with self._changed:
            self._changed.wait_for(lambda: worker < self.width or self._finished)
            return not self._finished

    def told(self, seconds: float, *, trouble: bool, contact: bool = True) -> None:
        """One answer: how long it took, whether the host had trouble. Without ``contact`` nobody was there, which says nothing of load."""
        with self._changed:
            if not contact:
                return
            self.contact, self.gone = time.monotonic(), False
            self._answers += 1
            self._troubles += trouble
            self._seconds += seconds
            if self._answers >= max(self.width, SHORTEST_ROUND):
                self._end_round()

    def pause(self, seconds: float) -> bool:
        """Wait before asking again; False when nobody wants the answer any more."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._aborted, timeout=seconds)

    def finish(self) -> None:
        """Nothing is left to ask for; who is asking goes on to the end."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Nobody wants answers any more."""
        with self._changed:
            self._finished = self._aborted = True
            self._changed.notify_all()

    def _begin_round(self) -> None:
        self._answers, self._troubles, self._seconds = 0, 0, 0.0

    def _end_round(self) -> None:
        mean = self._seconds / self._answers
        if self._troubles >= TROUBLED * self._answers:
            self.width, self._doubling = max(1, self.width // 2), False
        elif mean > QUEUED * self._best_s:
            self._doubling = False
        else:
            self.width = min(self._most, self.width * 2 if self._doubling else self.width + 1)
            self._changed.notify_all()
        if not self._troubles:
            self._best_s = min(self._best_s, mean)
        self._begin_round()
