"""Read files that others keep: below a folder, a web address or an S3 prefix. Every failure has a reason to count by."""

from __future__ import annotations

import base64
import binascii
import errno
import logging
import os
import random
import re
import stat
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import requests
import tenacity

from animl_pipeline.config.lila_datasets import LILA, lila_images
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import RemoteError, redact_url
from animl_pipeline.storage.bounded_http_body import TimeLimits
from animl_pipeline.storage.http_connection_pool import ConnectionPool, Response, status_error
from animl_pipeline.storage.redirects import MAX_REDIRECTS, REDIRECTS, redirect_target

if TYPE_CHECKING:
    from botocore.credentials import Credentials

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 5
MAX_PAUSE_S = 10.0
MAX_RETRY_AFTER_S = 60.0
"""If a server's Retry-After asks to wait longer than this, the file is not tried again in this run."""
MAX_WAIT_S = 120.0
"""No further try of one file begins later than this after the first."""
LONG_PAUSE_S = 5.0
"""A pause of at least this length is logged."""
IMPOSSIBLE_NAMES = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
"""Errors of a file system for a name under which there cannot be a file."""
MAX_REDIRECT_HOSTS = 16
"""Hosts that redirects of one host led to last, whose connections are kept open."""
BAD_CREDENTIALS = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired"}
)
"""S3's error codes for credentials that do not work for any file; another run with others may succeed."""
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z0-9]+)</Code>")


class Fetched(NamedTuple):
    """The bytes of a file, their md5 in hexadecimal if the server sent it, and when a file of this machine was changed (ns since 1970; else 0)."""

    data: bytes
    md5: str | None = None
    changed_ns: int = 0


class ReadLimits(NamedTuple):
    """The most bytes of a file, packed and unpacked, and the time limits of an answer."""

    bytes: int
    time: TimeLimits


class RemoteFolder(Protocol):
    """A folder, web address or S3 prefix below which files have names."""

    def read_once(self, name: str, max_bytes: int | None = None) -> Fetched:
        """The file's bytes, without a second try.

        ``max_bytes``: a larger file is not read; None: the limit of the settings (none for files of this machine).

        Raises:
            RemoteError: with one of its reasons.
        """

    def read(self, name: str) -> bytes:
        """The file's bytes; errors that are retryable are tried again.

        Raises:
            RemoteError: as :meth:`read_once`.
        """


def open_remote(base: str, settings: Settings, deadline_s: float | None = None) -> RemoteFolder:
    """The files below an address or path; ``lila://<set>`` means that set's images at the mirror of the settings.

    ``deadline_s`` is how long one file may take, if that is less than the settings allow.
    """
    limits = _limits(settings, deadline_s)
    if base.startswith(LILA):
        base = lila_images(base, settings.lila_url)
    if base.startswith("s3://"):
        return S3Folder(base, limits, settings.max_connections)
    if base.startswith(("https://", "http://")):
        return HttpFolder(base, limits, settings.max_connections)
    return LocalFolder(settings.data_path(base))


def read_path_or_url(address: str, settings: Settings) -> bytes:
    """The bytes of one file: a path, https://… or s3://bucket/key.

    Raises:
        RemoteError: as :meth:`RemoteFolder.read_once`.
    """
    if "://" not in address:
        path = settings.data_path(address)
        return LocalFolder(path.parent).read(path.name)
    base, _, name = address.rpartition("/")
    if base.startswith("s3://"):
        return open_remote(base, settings).read(name)
    return HttpFolder(base, _limits(settings)).read_url(address)


def _limits(settings: Settings, deadline_s: float | None = None) -> ReadLimits:
    deadline_s = min(settings.max_download_s, deadline_s or settings.max_download_s)
    return ReadLimits(settings.max_download_mb * 1_000_000, TimeLimits(settings.timeout_s, deadline_s))


def check_relative_path(name: str) -> str:
    """``name``, if it is a relative path that stays below its base.

    Raises:
        RemoteError: ``unsafe_path`` for an empty or absolute path, and for one with '..', a backslash or a control character.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or any(ord(c) < 32 for c in name) or ":" in path.parts[0][:2]:
        raise RemoteError("unsafe_path", f"expected a path below the folder of the images, found {name!r}")
    return name


def retry_pause_s(attempt: int, error: RemoteError) -> float | None:
    """Seconds to wait after the failed ``attempt`` (1, 2, …): doubling from 0.2 s, at random around that, at least Retry-After.

    None: do not try again now, because the error is lasting or the server asks to wait longer than ``MAX_RETRY_AFTER_S``.
    """
    if not error.retryable or error.retry_after_s > MAX_RETRY_AFTER_S:
        return None
    pause = min(MAX_PAUSE_S, 0.2 * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.5)  # noqa: S311 - it spreads requests, it guards nothing
    return max(pause, error.retry_after_s)


def _retry(call: Callable[[], T]) -> T:
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, RemoteError) and retry_pause_s(1, e) is not None),
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_before_delay(MAX_WAIT_S),
        wait=_pause_after,
        before_sleep=_log_wait,
        reraise=True,
    )
    return retrying(call)


def _pause_after(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return (retry_pause_s(state.attempt_number, error) or 0.0) if isinstance(error, RemoteError) else 0.0


def _log_wait(state: tenacity.RetryCallState) -> None:
    """Say why nothing happens, where the pause is long enough to be noticed."""
    if state.upcoming_sleep >= LONG_PAUSE_S and state.outcome is not None:
        log.warning("%s; waiting %.0f s before the next try", state.outcome.exception(), state.upcoming_sleep)


class LocalFolder:
    """Files below a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes:
        return self.read_once(name).data

    def read_once(self, name: str, max_bytes: int | None = None) -> Fetched:
        path = self.folder / check_relative_path(name)
        try:
            if not path.resolve().is_relative_to(self._real_folder):
                raise RemoteError("unsafe_path", f"{name!r} is a link that leaves {self.folder}")
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe or a device would never end
                raise RemoteError("missing", f"no file {path}")
            if max_bytes is not None and found.st_size > max_bytes:
                raise RemoteError("too_large", f"{path} has {found.st_size:,} bytes; the limit is {max_bytes:,}")
            return Fetched(path.read_bytes(), changed_ns=found.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise RemoteError("missing", f"no file {path}") from e
        except PermissionError as e:
            raise RemoteError("forbidden", f"no permission to read {path}") from e
        except (RuntimeError, ValueError) as e:  # circular links before Python 3.13; half a surrogate pair
            raise RemoteError("missing", f"no file {path} ({e})") from e
        except OSError as e:
            if e.errno in IMPOSSIBLE_NAMES:
                raise RemoteError("missing", f"no file {str(path)[:200]} ({e.strerror})") from e
            raise RemoteError("unreachable", f"{path}: {e}", retryable=True) from e

    @cached_property
    def _real_folder(self) -> Path:
        """The folder without symbolic links."""
        return Path(os.path.realpath(self.folder))


class HttpFolder:
    """Files below an https or http address. Redirects are followed within the same limits (:mod:`animl_pipeline.storage.redirects`)."""

    def __init__(self, base: str, limits: ReadLimits, connections: int = 1) -> None:
        base, question_mark, query = base.partition("?")
        self.base = base.rstrip("/")
        self._query = question_mark + query  # such as a signature that is valid for all files below
        self.limits = limits
        self.connections = connections
        self._lock = threading.Lock()
        self._others: dict[tuple[str, str], ConnectionPool] = {}  # of hosts that redirects lead to

    def read(self, name: str) -> bytes:
        return _retry(lambda: self.read_once(name)).data

    def read_url(self, address: str) -> bytes:
        """The bytes at a full address of the same host.

        Raises:
            RemoteError: as :meth:`RemoteFolder.read_once`.
        """
        return _retry(lambda: self._get(address, self.limits.bytes)).data

    def read_once(self, name: str, max_bytes: int | None = None) -> Fetched:
        return self._get(f"{self.base}/{quote(check_relative_path(name))}{self._query}", max_bytes or self.limits.bytes)

    def _get(self, address: str, max_bytes: int) -> Fetched:
        response, target = self._pool.get(address, max_bytes=max_bytes), address
        for _ in range(MAX_REDIRECTS):
            if response.status not in REDIRECTS:
                break
            target = redirect_target(target, response.headers.get("Location"))
            response = self._pool_for(target).get(target, max_bytes=max_bytes)
        shown = redact_url(address)
        if response.status in REDIRECTS:
            raise RemoteError("refused", f"{shown} redirects more than {MAX_REDIRECTS} times")
        if response.status != requests.codes.ok:
            raise status_error(response, shown)
        return Fetched(response.data, sent_md5(response.headers))

    def _pool_for(self, target: str) -> ConnectionPool:
        """The connections to the host of a redirect, which must not be nearer to this machine than the host that redirects."""
        host = (urlsplit(target).scheme, urlsplit(target).netloc)
        if host == (urlsplit(self.base).scheme, urlsplit(self.base).netloc.rpartition("@")[2]):
            return self._pool
        with self._lock:
            if host not in self._others:
                while len(self._others) >= MAX_REDIRECT_HOSTS:
                    self._others.pop(next(iter(self._others)))
                self._others[host] = ConnectionPool(target, self.limits.time, self.connections, farthest_in=self._pool.nearness)
            return self._others[host]

    @cached_property
    def _pool(self) -> ConnectionPool:
        return ConnectionPool(self.base, self.limits.time, self.connections)


class S3Folder:
    """Objects below s3://bucket/prefix. Region, credentials and address are boto3's usual variables."""

    def __init__(self, base: str, limits: ReadLimits, connections: int) -> None:
        self.bucket, _, prefix = base.rstrip("/").removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.connections = connections
        self.limits = limits
        self._lock = threading.Lock()
        self._client: _S3Client | None = None

    def read(self, name: str) -> bytes:
        return _retry(lambda: self.read_once(name)).data

    def read_once(self, name: str, max_bytes: int | None = None) -> Fetched:
        key = self.prefix + check_relative_path(name)
        client, max_bytes = self._connect(), max_bytes or self.limits.bytes
        response = client.get(key, max_bytes)
        region = response.headers.get("x-amz-bucket-region", "")
        if response.status in {301, 307, 400} and region and region != client.region:
            response = self._connect(region).get(key, max_bytes)
        if response.status == requests.codes.ok:
            return Fetched(response.data, sent_md5(response.headers))
        raise _s3_error(response, f"s3://{self.bucket}/{key}")

    def _connect(self, region: str | None = None) -> _S3Client:
        """The client, made at first use, and again if S3 names another region."""
        client = self._client
        if client is not None and region in {None, client.region}:
            return client
        with self._lock:
            if self._client is None or region not in {None, self._client.region}:
                self._client = _connect_s3(self.bucket, region, self.connections, self.limits.time)
            return self._client


class _S3Client:
    """Signed GET requests to one bucket through a connection pool: a third of boto3's CPU time (benchmarks/images.py)."""

    def __init__(self, address: str, region: str, credentials: Credentials | None, pool: ConnectionPool) -> None:
        self.address = address
        self.region = region
        self._credentials = credentials
        self._pool = pool

    def get(self, key: str, max_bytes: int) -> Response:
        address = self.address + quote(key, safe="/~")
        return self._pool.get(address, self._sign(address), max_bytes=max_bytes)

    def _sign(self, address: str) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        if self._credentials is None:
            return {}
        request = AWSRequest("GET", address)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)  # frozen for each request: they expire
        return dict(request.headers.items())


def _connect_s3(bucket: str, region: str | None, connections: int, limits: TimeLimits) -> _S3Client:
    """A client with the address and credentials that boto3 finds. Without credentials, requests are unsigned, for public data.

    Raises:
        RemoteError: ``refused``: boto3 finds no address, or the bucket's name is not valid.
    """
    import boto3
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        core = botocore.session.get_session()
        session = boto3.Session(botocore_session=core)
        credentials = session.get_credentials()
        client = session.client("s3", region_name=region, config=Config(signature_version="s3v4" if credentials else UNSIGNED))
        presigned = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        address = presigned.partition("?")[0].removesuffix("k")
        ca_file = core.get_config_variable("ca_bundle")
    except (BotoCoreError, ValueError) as e:
        raise RemoteError("refused", f"s3://{bucket}: {e}") from e
    return _S3Client(address, client.meta.region_name, credentials, ConnectionPool(address, limits, connections, ca_file))


def _s3_error(response: Response, shown: str) -> RemoteError:
    found = _ERROR_CODE.search(response.data)
    code = found[1].decode() if found else ""
    shown = f"{shown} ({code})" if code else shown
    if code in BAD_CREDENTIALS:
        return RemoteError("forbidden", f"{shown}: S3 does not accept the credentials ({response.status})", retryable=True, offline=True)
    return status_error(response, shown)


def sent_md5(headers: Mapping[str, str]) -> str | None:
    """The md5 that a server sent, in hexadecimal: Content-MD5 (Azure), x-goog-hash (Google) or S3's ETag; None without one.

    S3's ETag is an md5 for objects that were uploaded in one part and are not encrypted with a key of KMS or of the customer.
    """
    if headers.get("Content-Encoding", "identity") != "identity":  # it is the md5 of the packed bytes
        return None
    google = [p.strip()[4:] for p in headers.get("x-goog-hash", "").split(",") if p.strip().startswith("md5=")]
    for text in (headers.get("Content-MD5", ""), *google):
        try:
            digest = base64.b64decode(text, validate=True).hex()
        except (binascii.Error, ValueError):
            continue
        if len(digest) == 32:
            return digest
    if "x-amz-request-id" not in headers or "kms" in headers.get("x-amz-server-side-encryption", ""):
        return None
    etag = headers.get("ETag", "").strip('"').lower()
    customer_key = "x-amz-server-side-encryption-customer-algorithm" in headers
    return etag if len(etag) == 32 and not customer_key and set(etag) <= set("0123456789abcdef") else None


__all__ = [
    "ATTEMPTS",
    "BAD_CREDENTIALS",
    "LONG_PAUSE_S",
    "MAX_WAIT_S",
    "Fetched",
    "HttpFolder",
    "LocalFolder",
    "ReadLimits",
    "RemoteError",
    "RemoteFolder",
    "S3Folder",
    "check_relative_path",
    "open_remote",
    "read_path_or_url",
    "retry_pause_s",
    "sent_md5",
]
