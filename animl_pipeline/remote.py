"""Bytes from where others keep them: a folder, an https base address, an S3 bucket. Retried where that can heal.

Names below a base come from exports and are not to be trusted: a name that would leave its base is refused.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import requests
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from animl_pipeline.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 5
NEVER_THERE = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
"""What a file system says of names under which there cannot be a file."""


class RemoteError(Exception):
    """Something did not arrive: ``reason`` is a word to count by, ``heals`` whether a later try may succeed.

    ``offline`` says that there was nobody to ask at all.
    """

    def __init__(self, reason: str, detail: str, *, heals: bool = False, offline: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.heals = heals
        self.offline = offline


class Remote(Protocol):
    """A base below which files have names."""

    def get(self, name: str) -> bytes:
        """The bytes under a name.

        Raises:
            RemoteError: ``missing``, ``forbidden``, ``unreachable``, ``refused`` or ``unsafe_path``.
        """


def remote_at(base: str, settings: Settings) -> Remote:
    """The base that an address or path names."""
    if base.startswith("s3://"):
        return Bucket(base, settings.workers, settings.timeout_s)
    if base.startswith(("https://", "http://")):
        return Web(base, settings.timeout_s)
    return Folder(settings.data_path(base))


def read_address(address: str, settings: Settings) -> bytes:
    """The bytes at one full address: a path, https://… or s3://bucket/key.

    Raises:
        RemoteError: as :meth:`Remote.get`.
    """
    if "://" not in address:
        path = settings.data_path(address)
        return Folder(path.parent).get(path.name)
    base, _, name = address.rpartition("/")
    if base.startswith("s3://"):
        return remote_at(base, settings).get(name)
    return Web(base, settings.timeout_s).get_address(address)


def safe_name(name: str) -> str:
    """``name``, if it is a relative path that stays below its base.

    Raises:
        RemoteError: ``unsafe_path`` for an empty or absolute one, and for one with '..', a backslash or a control character.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or any(ord(c) < 32 for c in name) or ":" in path.parts[0][:2]:
        raise RemoteError("unsafe_path", f"expected a path below the pictures' place, found {name!r}")
    return name


class Folder:
    """Files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes:
        path = self.folder / safe_name(name)
        try:
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise RemoteError("unsafe_path", f"{name!r} is a link that leaves {self.folder}")
            if not path.is_file():  # a pipe or a device would never end
                raise RemoteError("missing", f"no file {path}")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as e:
            raise RemoteError("missing", f"no file {path}") from e
        except PermissionError as e:
            raise RemoteError("forbidden", f"{path} may not be read") from e
        except (RuntimeError, ValueError) as e:  # links in a circle, as pathlib meets them before Python 3.13; half a surrogate pair
            raise RemoteError("missing", f"no file {path} ({e})") from e
        except OSError as e:
            if e.errno in NEVER_THERE:
                raise RemoteError("missing", f"no file {str(path)[:200]} ({e.strerror})") from e
            raise RemoteError("unreachable", f"{path}: {e}", heals=True) from e


class Web:
    """Files below an https address, one connection pool a thread."""

    def __init__(self, base: str, timeout_s: float) -> None:
        self.base = base.rstrip("/")
        self.timeout_s = timeout_s
        self._local = threading.local()

    def get(self, name: str) -> bytes:
        return self.get_address(f"{self.base}/{quote(safe_name(name))}")

    def get_address(self, address: str) -> bytes:
        """The bytes at a full address."""
        return _patiently(lambda: self._once(address))

    def _once(self, address: str) -> bytes:
        try:
            answer = self._session.get(address, timeout=self.timeout_s)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as e:
            raise RemoteError("refused", f"{bare_address(address)} is no address") from e
        except requests.RequestException as e:
            # also a body that ended early: urllib3 compares it with Content-Length
            offline = isinstance(e, requests.ConnectionError)
            said = "no connection" if offline else type(e).__name__
            raise RemoteError("unreachable", f"{bare_address(address)}: {said}", heals=True, offline=offline) from e
        if answer.status_code == requests.codes.ok:
            return answer.content
        raise _refusal(answer.status_code, bare_address(address))

    @property
    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
        return session


class Bucket:
    """Objects below s3://bucket/prefix; boto3 finds region, credentials and address in its usual variables."""

    def __init__(self, base: str, workers: int, timeout_s: float) -> None:
        self.bucket, _, prefix = base.rstrip("/").removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.workers = workers
        self.timeout_s = timeout_s

    @cached_property
    def client(self) -> S3Client:
        """boto3's client, unsigned where there are no credentials (public data)."""
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        config = Config(max_pool_connections=self.workers, read_timeout=self.timeout_s, connect_timeout=self.timeout_s, retries={"max_attempts": 1})
        if boto3.Session().get_credentials() is None:
            config = config.merge(Config(signature_version=UNSIGNED))
        return boto3.client("s3", config=config)

    def get(self, name: str) -> bytes:
        key = self.prefix + safe_name(name)
        return _patiently(lambda: self._once(key))

    def _once(self, key: str) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as NoConnection
        from urllib3.exceptions import HTTPError

        where = f"s3://{self.bucket}/{key}"
        try:
            return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except ClientError as e:
            raise _refusal(int(e.response["ResponseMetadata"]["HTTPStatusCode"]), f"{where} ({e.response['Error'].get('Code')})") from e
        except (HTTPClientError, HTTPError, ConnectionError) as e:
            raise RemoteError("unreachable", f"{where}: {type(e).__name__}", heals=True, offline=isinstance(e, NoConnection)) from e
        except BotoCoreError as e:
            raise RemoteError("refused", f"{where}: {e}") from e


def _patiently(call: Callable[[], bytes]) -> bytes:
    """Try again what can heal, with growing pauses."""
    again = retry_if_exception(lambda e: isinstance(e, RemoteError) and e.heals)
    return Retrying(retry=again, stop=stop_after_attempt(ATTEMPTS), wait=wait_exponential_jitter(initial=0.2, max=10), reraise=True)(call)


def _refusal(status: int, where: str) -> RemoteError:
    """What an HTTP status says."""
    if status in {404, 410}:
        return RemoteError("missing", f"{where}: not there ({status})")
    if status in {401, 403}:
        return RemoteError("forbidden", f"{where}: no permission ({status})")
    if status in {408, 429} or status >= 500:
        return RemoteError("unreachable", f"{where}: the server answered {status}", heals=True)
    return RemoteError("refused", f"{where}: the server answered {status}")


def bare_address(address: str) -> str:
    """An address without its query, which may hold a signature; a path as it is."""
    return address.partition("?")[0] if "://" in address else address
