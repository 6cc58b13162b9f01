"""A pool of open connections to one HTTP host, shared by many threads, so that a request costs little more than its bytes.

What ``requests`` takes from the environment (proxies, certificates, .netrc) is looked up once for the host. Then urllib3's pool is
used directly, which takes a third of the CPU time that a session of requests takes (benchmarks/images.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from animl_pipeline.core.errors import redact_url
from animl_pipeline.storage.remote_error import RemoteError

CHUNK_BYTES = 1 << 18
SMALL_BYTES = 1 << 24
"""Bodies of at most this size are read in one go."""
SLOWEST_BYTES_PER_S = 1024
"""A body that comes slower counts as one that hangs."""

_NO_CONNECTION = (NewConnectionError, NameResolutionError, ConnectTimeoutError, ProxyError, SSLError)


class Response(NamedTuple):
    """A server's complete answer."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class ConnectionPool:
    """Connections to the host of an address, kept open."""

    def __init__(self, address: str, timeout_s: float, connections: int, ca_file: str | None = None) -> None:
        """Open no connection yet.

        Args:
            address: any address of the host.
            timeout_s: how long the server may send nothing.
            connections: how many are kept open.
            ca_file: file of certificates to trust; None: those that requests trusts.

        Raises:
            RemoteError: ``refused``: the address is not valid.
        """
        self.timeout_s = timeout_s
        try:
            prepared = requests.Session().prepare_request(requests.Request("GET", address))
            environment = requests.Session().merge_environment_settings(prepared.url or address, {}, False, ca_file, None)
            adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections)
            pool = adapter.get_connection_with_tls_context(prepared, environment["verify"], environment["proxies"], environment["cert"])
            url = adapter.request_url(prepared, environment["proxies"])
        except (requests.exceptions.RequestException, LocationParseError, ValueError) as e:
            raise RemoteError("refused", f"{redact_url(address)} is not a valid address") from e
        assert isinstance(pool, urllib3.HTTPConnectionPool)  # noqa: S101 - requests declares its type less exactly
        self._pool = pool
        self._whole_url = "://" in url  # a proxy wants it
        self._headers = {"User-Agent": "animl-pipeline", "Accept-Encoding": "identity"}
        if "Authorization" in prepared.headers:  # from .netrc
            self._headers["Authorization"] = str(prepared.headers["Authorization"])
        self._timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)

    def get(self, address: str, headers: Mapping[str, str] | None = None, max_bytes: int | None = None) -> Response:
        """The complete answer to a GET; redirects are not followed.

        Args:
            address: the address.
            headers: further headers.
            max_bytes: a larger body is not read; None: no limit.

        Raises:
            RemoteError: ``too_large``; ``unreachable``, ``timed_out`` or ``truncated``, which are retryable.
        """
        shown = redact_url(address)
        try:
            target = address if self._whole_url else _path_and_query(address)
            answer = self._pool.urlopen(
                "GET", target, headers=self._headers | dict(headers or {}), timeout=self._timeout, retries=False,
                redirect=False, preload_content=False, decode_content=False,
            )  # fmt: skip
        except ReadTimeoutError as e:
            raise RemoteError("timed_out", f"{shown}: no answer within {self.timeout_s:g} s", retryable=True) from e
        except HTTPError as e:
            offline = isinstance(e, _NO_CONNECTION)
            raise RemoteError("unreachable", f"{shown}: {'no connection' if offline else type(e).__name__}", retryable=True, offline=offline) from e
        try:
            data = self._read_body(answer, shown, max_bytes)
        except BaseException:
            answer.close()  # otherwise the rest of the body would become the next answer
            raise
        answer.release_conn()
        return Response(answer.status, answer.headers, data)

    def _read_body(self, answer: urllib3.BaseHTTPResponse, shown: str, max_bytes: int | None) -> bytes:
        announced = answer.headers.get("Content-Length", "")
        expected = int(announced) if announced.isdecimal() else None
        if max_bytes is not None and expected is not None and expected > max_bytes:
            raise RemoteError("too_large", f"{shown} has {expected:,} bytes; the limit is {max_bytes:,}")
        decode = "Content-Encoding" in answer.headers
        chunks, size = list[bytes](), 0
        try:
            if expected is not None and expected <= SMALL_BYTES and not decode:
                return answer.read(decode_content=False)
            started = time.monotonic()
            while chunk := answer.read(CHUNK_BYTES, decode_content=decode):
                chunks.append(chunk)
                size += len(chunk)
                if max_bytes is not None and size > max_bytes:
                    raise RemoteError("too_large", f"{shown} has more than {max_bytes:,} bytes, which is the limit")
                if time.monotonic() - started > self.timeout_s + size / SLOWEST_BYTES_PER_S:
                    raise RemoteError("timed_out", f"{shown}: only {size:,} bytes came in {time.monotonic() - started:.0f} s", retryable=True)
        except ReadTimeoutError as e:
            raise RemoteError("timed_out", f"{shown}: the body stopped after {size:,} bytes", retryable=True) from e
        except IncompleteRead as e:
            raise RemoteError("truncated", f"{shown}: expected {announced or 'more'} bytes, the body ended after {size:,}", retryable=True) from e
        except HTTPError as e:
            raise RemoteError("truncated", f"{shown}: the body broke off after {size:,} bytes ({type(e).__name__})", retryable=True) from e
        return b"".join(chunks)


def status_error(response: Response, shown: str) -> RemoteError:
    """The error that an HTTP status other than 200 means; ``shown`` is the address as a message may show it."""
    status = response.status
    if status in {404, 410}:
        return RemoteError("missing", f"{shown}: not there ({status})")
    if status in {401, 403}:
        return RemoteError("forbidden", f"{shown}: no permission ({status})")
    if status in {408, 429} or status >= 500:
        return RemoteError("unreachable", f"{shown}: the server answered {status}", retryable=True, retry_after_s=_retry_after_s(response.headers))
    return RemoteError("refused", f"{shown}: the server answered {status}")


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """The seconds that the header Retry-After asks for; 0 without it."""
    text = headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _path_and_query(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
