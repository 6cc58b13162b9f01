"""Bounds for what a server sends: how slow an answer may come, and how much a packed body may unpack to."""

from __future__ import annotations

import http.client
import io
import socket
import time
import zlib
from typing import Any, NamedTuple

from animl_pipeline.core.errors import RemoteError

SLOWEST_BYTES_PER_S = 1024
"""An answer that comes slower counts as one that hangs."""
MAX_RATIO = 250
"""How many times its packed size a file may grow to: CSV and JSON grow 10 to 50 times, zeros a thousand times."""
RATIO_FREE = 64 << 20
"""Bytes up to which the ratio does not count."""
_GZIP_OR_ZLIB = 47
"""zlib's number for either format; the header of the data decides."""


class TimeLimits(NamedTuple):
    """How long a server may send nothing, and how long a complete answer may take, in seconds."""

    silence_s: float
    deadline_s: float


def unpacked_limit(packed: int, most: int) -> int:
    """How many bytes ``packed`` bytes may unpack to: ``MAX_RATIO`` times as many, and at most ``most``."""
    return min(most, max(RATIO_FREE, MAX_RATIO * packed))


def decode_body(data: bytes, encoding: str, shown: str, most: int) -> bytes:
    """A body without the Content-Encoding that a server chose, although none was asked for.

    Raises:
        RemoteError: ``refused`` for an encoding other than gzip and deflate; ``too_large``; ``truncated``, which is retryable.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return data
    if name not in {"gzip", "x-gzip", "deflate"}:
        raise RemoteError("refused", f"{shown}: expected bytes as they are, or packed with gzip, found the encoding {encoding[:40]!r}")
    limit = unpacked_limit(len(data), most)
    parts, size, packed = list[bytes](), 0, data
    try:
        while packed:  # a gzip file may have several parts
            unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
            parts.append(unpacker.decompress(packed, limit + 1 - size))
            size += len(parts[-1])
            if size > limit:
                raise RemoteError("too_large", f"{shown} has {len(data):,} bytes that unpack to more than {limit:,}, which is the limit")
            if not unpacker.eof:
                raise RemoteError("truncated", f"{shown}: the packed body ended early, after {len(data):,} bytes", retryable=True)
            packed = unpacker.unused_data
    except zlib.error as e:
        raise RemoteError("truncated", f"{shown}: the packed body is damaged ({e})", retryable=True) from e
    return b"".join(parts)


class BoundedResponse(http.client.HTTPResponse):
    """An answer whose header and body come within time limits. Each read from the network checks them."""

    def __init__(self, sock: socket.socket, *args: Any, limits: TimeLimits, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock, limits))


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the time limits are reached; then it raises TimeoutError."""

    def __init__(self, sock: socket.socket, limits: TimeLimits) -> None:
        self._socket = sock
        self._file = sock.makefile("rb", buffering=0)
        self._limits = limits
        self._started = time.monotonic()
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        elapsed = time.monotonic() - self._started
        slowest = self._limits.silence_s + self._bytes / SLOWEST_BYTES_PER_S
        left = min(slowest, self._limits.deadline_s) - elapsed
        if left <= 0:
            raise TimeoutError(f"only {self._bytes:,} bytes came in {elapsed:.0f} s")
        self._socket.settimeout(min(left, self._limits.silence_s))
        read = self._file.readinto(buffer)
        self._bytes += read or 0
        return read

    def close(self) -> None:
        self._file.close()
        super().close()
