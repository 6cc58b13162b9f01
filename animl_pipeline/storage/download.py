"""What comes back from where others keep bytes: the bytes, or a reason to count by; and how often it is worth asking."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")

ATTEMPTS = 5
LONGEST_PAUSE_S = 10.0
LONGEST_WISH_S = 60.0
"""A server's own wish (Retry-After) is granted up to this."""


class RemoteError(Exception):
    """Something did not arrive: ``reason`` is a word to count by, ``heals`` whether a later try may succeed.

    ``offline`` says that there was nobody to ask at all, or nobody who knows us; ``after_s`` how long the server wants to
    be left alone.
    """

    def __init__(self, reason: str, detail: str, *, retryable: bool = False, offline: bool = False, after_s: float = 0.0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retryable = retryable
        self.offline = offline
        self.after_s = after_s


class Fetched(NamedTuple):
    """Bytes that arrived, and the md5 (hexadecimal) that the server said they have, where it said one."""

    data: bytes
    md5: str | None = None


class Remote(Protocol):
    """A base below which files have names."""

    def once(self, name: str, at_most: int | None = None) -> Fetched:
        """The bytes under a name, asked for once.

        Args:
            name: a path below the base.
            at_most: a body of more bytes is not read.

        Raises:
            RemoteError: ``missing``, ``forbidden``, ``refused``, ``unsafe_path``, ``too_large``; or what may heal:
                ``unreachable``, ``timed_out``, ``truncated``.
        """

    def get(self, name: str) -> bytes:
        """The bytes under a name, asked for again where that can heal.

        Raises:
            RemoteError: as :meth:`once`.
        """


def safe_name(name: str) -> str:
    """``name``, if it is a relative path that stays below its base.

    Raises:
        RemoteError: ``unsafe_path`` for an empty or absolute one, and for one with '..', a backslash or a control character.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or any(ord(c) < 32 for c in name) or ":" in path.parts[0][:2]:
        raise RemoteError("unsafe_path", f"expected a path below the pictures' place, found {name!r}")
    return name


def patiently(call: Callable[[], T]) -> T:
    """Call again what can heal, with growing pauses."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except RemoteError as e:
            if not e.retryable:
                raise
            time.sleep(pause_s(attempt, e))
    return call()


def pause_s(attempt: int, error: RemoteError) -> float:
    """How long to wait after the failed ``attempt`` (1, 2, …): doubling from 0.2 s, spread at random, at least what the server wants."""
    pause = min(LONGEST_PAUSE_S, 0.2 * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.5)  # noqa: S311 - it spreads askers, it guards nothing
    return max(pause, min(error.after_s, LONGEST_WISH_S))


def refusal(status: int, where: str, after_s: float = 0.0) -> RemoteError:
    """What an HTTP status says."""
    if status in {404, 410}:
        return RemoteError("missing", f"{where}: not there ({status})")
    if status in {401, 403}:
        return RemoteError("forbidden", f"{where}: no permission ({status})")
    if status in {408, 429} or status >= 500:
        return RemoteError("unreachable", f"{where}: the server answered {status}", retryable=True, after_s=after_s)
    return RemoteError("refused", f"{where}: the server answered {status}")


def bare_address(address: str) -> str:
    """An address without what may be a secret: its user and password, and its query, which may hold a signature; a path as it is."""
    return re.sub(r"://[^/]*@", "://", address.partition("?")[0]) if "://" in address else address
