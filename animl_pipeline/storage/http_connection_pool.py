"""A pool of open connections to one HTTP host, shared by many threads, so that a request costs little more than its bytes.

What ``requests`` takes from the environment (proxies, certificates, .netrc) is looked up once for the host. Then urllib3's pool is
used directly, which takes a third of the CPU time that a session of requests takes (benchmarks/images.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple
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

from animl_pipeline.core.errors import RemoteError, redact_url
from animl_pipeline.storage.bounded_http_body import BoundedResponse, TimeLimits, decode_body
from animl_pipeline.storage.redirects import Nearness, nearness, refuse_nearer

CHUNK_BYTES = 1 << 18
SMALL_BYTES = 1 << 24
"""Bodies of at most this size are read in one go."""
MAX_ERROR_BYTES = 1 << 16
"""Bytes of an answer other than 200 that are read; they explain the error."""

_NO_CONNECTION = (NewConnectionError, NameResolutionError, ConnectTimeoutError, ProxyError, SSLError)


class Response(NamedTuple):
    """A server's complete answer."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class ConnectionPool:
    """Connections to the host of an address, kept open."""

    def __init__(self, address: str, limits: TimeLimits, connections: int, ca_file: str | None = None, farthest_in: Nearness | None = None) -> None:
        """Open no connection yet.

        ``limits``: how long the server may send nothing, and how long an answer may take. ``ca_file``: file of certificates to trust; None:
        those that requests trusts. ``farthest_in``: a host that is nearer to this machine is not connected to; None: any host.

        Raises:
            RemoteError: ``refused``: the address is not valid, or nearer than ``farthest_in``.
        """
        self.limits = limits
        try:
            prepared = requests.Session().prepare_request(requests.Request("GET", address))
            environment = requests.Session().merge_environment_settings(prepared.url or address, {}, False, ca_file, None)
            adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections)
            pool = adapter.get_connection_with_tls_context(prepared, environment["verify"], environment["proxies"], environment["cert"])
            url = adapter.request_url(prepared, environment["proxies"])
        except (requests.exceptions.RequestException, LocationParseError, ValueError) as e:
            raise RemoteError("refused", f"{redact_url(address)} is not a valid address") from e
        assert isinstance(pool, urllib3.HTTPConnectionPool)  # noqa: S101 - requests declares its type less exactly
        host = urlsplit(address).hostname or ""
        self.nearness = nearness(host)
        refuse_nearer(host, self.nearness, farthest_in)
        self._farthest_in = farthest_in
        pool.ConnectionCls = self._bounded(pool.ConnectionCls)
        self._pool = pool
        self._whole_url = "://" in url  # a proxy wants it
        self._headers = {"User-Agent": "animl-pipeline", "Accept-Encoding": "identity"}
        if "Authorization" in prepared.headers:  # from .netrc
            self._headers["Authorization"] = str(prepared.headers["Authorization"])
        self._timeout = urllib3.Timeout(connect=limits.silence_s, read=limits.silence_s)

    def get(self, address: str, headers: Mapping[str, str] | None = None, *, max_bytes: int) -> Response:
        """The complete answer to a GET; redirects are not followed.

        Of an answer other than 200, at most ``MAX_ERROR_BYTES`` are read.

        ``max_bytes``: a larger body is not read, and a packed one is not unpacked to more.

        Raises:
            RemoteError: ``too_large`` or ``refused``; ``unreachable``, ``timed_out`` or ``truncated``, which are retryable.
        """
        shown = redact_url(address)
        try:
            target = address if self._whole_url else _path_and_query(address)
            answer = self._pool.urlopen(
                "GET", target, headers=self._headers | dict(headers or {}), timeout=self._timeout, retries=False,
                redirect=False, assert_same_host=False, preload_content=False, decode_content=False,
            )  # fmt: skip
        except ReadTimeoutError as e:
            raise RemoteError("timed_out", f"{shown}: no answer within {self.limits.silence_s:g} s", retryable=True) from e
        except HTTPError as e:
            offline = isinstance(e, _NO_CONNECTION)
            raise RemoteError("unreachable", f"{shown}: {'no connection' if offline else type(e).__name__}", retryable=True, offline=offline) from e
        try:
            if answer.status != requests.codes.ok:
                data, whole = _read_error(answer)
            else:
                data, whole = _read_body(answer, shown, max_bytes), True
        except BaseException:
            answer.close()  # otherwise the rest of the body would become the next answer
            raise
        if whole:
            answer.release_conn()
        else:
            answer.close()
        return Response(answer.status, answer.headers, data)

    def _bounded(self, kind: type[Any]) -> type[Any]:
        """The class of connections ``kind`` with time limits, which finds out how near the host is, before it sends a request to it."""
        pool = self

        class Bounded(kind):  # type: ignore[misc]  # urllib3's class for http or for https
            def connect(self) -> None:
                super().connect()
                if self.proxy is None:  # otherwise only the proxy knows the host's address
                    pool.nearness = nearness(self.sock.getpeername()[0])
                    refuse_nearer(self.host, pool.nearness, pool._farthest_in)
                self.response_class = partial(BoundedResponse, limits=pool.limits)

        return Bounded


def _read_error(answer: urllib3.BaseHTTPResponse) -> tuple[bytes, bool]:
    """The beginning of an answer other than 200, and whether it is all of it."""
    try:
        data = answer.read(MAX_ERROR_BYTES + 1, decode_content=False)
    except HTTPError:  # the status says enough
        return b"", False
    return data[:MAX_ERROR_BYTES], len(data) <= MAX_ERROR_BYTES


def _read_body(answer: urllib3.BaseHTTPResponse, shown: str, max_bytes: int) -> bytes:
    announced = answer.headers.get("Content-Length", "")
    expected = int(announced[:20]) if announced.isascii() and announced.isdecimal() else None
    if expected is not None and expected > max_bytes:
        raise RemoteError("too_large", f"{shown} has {expected:,} bytes; the limit is {max_bytes:,}")
    chunks, size = list[bytes](), 0
    try:
        if expected is not None and expected <= SMALL_BYTES:
            chunks = [answer.read(decode_content=False)]
        else:
            while chunk := answer.read(CHUNK_BYTES, decode_content=False):
                chunks.append(chunk)
                size += len(chunk)
                if size > max_bytes:
                    raise RemoteError("too_large", f"{shown} has more than {max_bytes:,} bytes, which is the limit")
    except ReadTimeoutError as e:
        raise RemoteError("timed_out", f"{shown}: the body stopped or came too slowly", retryable=True) from e
    except IncompleteRead as e:
        raise RemoteError("truncated", f"{shown}: expected {announced or 'more'} bytes, the body ended after {e.partial:,}", retryable=True) from e
    except HTTPError as e:
        raise RemoteError("truncated", f"{shown}: the body broke off after {size:,} bytes ({type(e).__name__})", retryable=True) from e
    return decode_body(b"".join(chunks), answer.headers.get("Content-Encoding", ""), shown, max_bytes)


def status_error(response: Response, shown: str) -> RemoteError:
    """The error that an HTTP status other than 200 means; ``shown`` is the address as a message may show it."""
    status = response.status
    if status in {404, 410}:
        return RemoteError("missing", f"{shown}: not there ({status})")
    if status in {401, 403}:
        return RemoteError("forbidden", f"{shown}: no permission ({status})")
    if status in {408, 429} or status >= 500:
        wait_s = _retry_after_s(response.headers)
        asks = f" and asks to wait {wait_s:.0f} s" if wait_s >= 1 else ""
        return RemoteError("unreachable", f"{shown}: the server answered {status}{asks}", retryable=True, retry_after_s=wait_s)
    return RemoteError("refused", f"{shown}: the server answered {status}")


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """The seconds that the header Retry-After asks for; 0 without it."""
    text = headers.get("Retry-After", "")
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _path_and_query(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
