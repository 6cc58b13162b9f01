"""One HTTP host's connections, kept open and shared by many threads: a request costs little more than its bytes.

What ``requests`` finds in the environment (proxies, certificates, .netrc) is looked up once for the host; then urllib3's
pool is asked directly, which takes a third of the time that a session takes for each request.
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

from animl_pipeline.storage.download import RemoteError, bare_address

CHUNK = 1 << 18
SMALL = 1 << 24
"""Bodies of at most this are read in one go."""
SLOWEST = 1024
"""Bytes a second: a body that comes slower is taken for one that hangs."""

_NOBODY = (NewConnectionError, NameResolutionError, ConnectTimeoutError, ProxyError, SSLError)


class Reply(NamedTuple):
    """A server's whole answer."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class Door:
    """The connections to the host of an address."""

    def __init__(self, address: str, timeout_s: float, connections: int, verify: str | None = None) -> None:
        """Open no connection yet.

        Args:
            address: any address of the host.
            timeout_s: how long the server may be silent.
            connections: how many are kept open.
            verify: file of certificates to trust, where it is not what requests takes.

        Raises:
            RemoteError: ``refused``: the address is none.
        """
        self.timeout_s = timeout_s
        try:
            prepared = requests.Session().prepare_request(requests.Request("GET", address))
            found = requests.Session().merge_environment_settings(prepared.url or address, {}, False, verify, None)
            adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections)
            pool = adapter.get_connection_with_tls_context(prepared, found["verify"], found["proxies"], found["cert"])
            url = adapter.request_url(prepared, found["proxies"])
        except (requests.exceptions.RequestException, LocationParseError, ValueError) as e:
            raise RemoteError("refused", f"{bare_address(address)} is no address") from e
        assert isinstance(pool, urllib3.HTTPConnectionPool)  # noqa: S101 - requests says no more than that it is a pool
        self._pool = pool
        self._wants_whole = "://" in url
        self._headers = {"User-Agent": "animl-pipeline", "Accept-Encoding": "identity"}
        if "Authorization" in prepared.headers:  # from .netrc
            self._headers["Authorization"] = str(prepared.headers["Authorization"])
        self._timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)

    def get(self, address: str, headers: Mapping[str, str] | None = None, at_most: int | None = None) -> Reply:
        """The whole answer to a GET; redirects are not followed.

        Raises:
            RemoteError: ``unreachable``, ``timed_out`` or ``truncated``, which heal; ``too_large``.
        """
        where = bare_address(address)
        try:
            target = address if self._wants_whole else _path_of(address)
            answer = self._pool.urlopen(
                "GET", target, headers=self._headers | dict(headers or {}), timeout=self._timeout, retries=False,
                redirect=False, preload_content=False, decode_content=False,
            )  # fmt: skip
        except ReadTimeoutError as e:
            raise RemoteError("timed_out", f"{where}: no answer within {self.timeout_s:g} s", retryable=True) from e
        except HTTPError as e:
            offline = isinstance(e, _NOBODY)
            raise RemoteError("unreachable", f"{where}: {'no connection' if offline else type(e).__name__}", retryable=True, offline=offline) from e
        try:
            data = self._body(answer, where, at_most)
        except BaseException:
            answer.close()  # what is left of the body would be taken for the next answer
            raise
        answer.release_conn()
        return Reply(answer.status, answer.headers, data)

    def _body(self, answer: urllib3.BaseHTTPResponse, where: str, at_most: int | None) -> bytes:
        announced = answer.headers.get("Content-Length", "")
        expected = int(announced) if announced.isdecimal() else None
        if at_most is not None and expected is not None and expected > at_most:
            raise RemoteError("too_large", f"{where} has {expected:,} bytes; at most {at_most:,} are read")
        decode = "Content-Encoding" in answer.headers
        chunks, n = list[bytes](), 0
        try:
            if expected is not None and expected <= SMALL and not decode:
                return answer.read(decode_content=False)
            begun = time.monotonic()
            while chunk := answer.read(CHUNK, decode_content=decode):
                chunks.append(chunk)
                n += len(chunk)
                if at_most is not None and n > at_most:
                    raise RemoteError("too_large", f"{where} has more than {at_most:,} bytes, which is all that is read")
                if time.monotonic() - begun > self.timeout_s + n / SLOWEST:
                    raise RemoteError("timed_out", f"{where}: {n:,} bytes came in {time.monotonic() - begun:.0f} s", retryable=True)
        except ReadTimeoutError as e:
            raise RemoteError("timed_out", f"{where}: the body stopped after {n:,} bytes", retryable=True) from e
        except IncompleteRead as e:
            raise RemoteError("truncated", f"{where}: expected {announced or 'more'} bytes, the body ended after {n:,}", retryable=True) from e
        except HTTPError as e:
            raise RemoteError("truncated", f"{where}: the body broke off after {n:,} bytes ({type(e).__name__})", retryable=True) from e
        return b"".join(chunks)


def wished_pause(headers: Mapping[str, str]) -> float:
    """The seconds that a server's Retry-After asks for; 0 where it asks for none."""
    wish = headers.get("Retry-After", "")
    if wish.isdecimal():
        return float(wish)
    try:
        return max(0.0, parsedate_to_datetime(wish).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _path_of(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
