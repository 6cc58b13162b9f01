"""Bytes below a folder of this machine."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import re
import stat
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import requests

from animl_pipeline.config.lila_datasets import LILA, lila_images
from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.connection_pool import Door, Reply, wished_pause
from animl_pipeline.storage.download import ATTEMPTS, Fetched, Remote, RemoteError, bare_address, patiently, pause_s, refusal, safe_name

if TYPE_CHECKING:
    from botocore.credentials import Credentials


NEVER_THERE = frozenset({errno.ENAMETOOLONG, errno.ELOOP})
"""What a file system says of names under which there cannot be a file."""


class Folder:
    """Files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes:
        return self.once(name).data

    def once(self, name: str, at_most: int | None = None) -> Fetched:
        path = self.folder / safe_name(name)
        try:
            if not path.resolve().is_relative_to(self._real):
                raise RemoteError("unsafe_path", f"{name!r} is a link that leaves {self.folder}")
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe or a device would never end
                raise RemoteError("missing", f"no file {path}")
            if at_most is not None and found.st_size > at_most:
                raise RemoteError("too_large", f"{path} has {found.st_size:,} bytes; at most {at_most:,} are read")
            return Fetched(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as e:
            raise RemoteError("missing", f"no file {path}") from e
        except PermissionError as e:
            raise RemoteError("forbidden", f"{path} may not be read") from e
        except (RuntimeError, ValueError) as e:  # links in a circle, as pathlib meets them before Python 3.13; half a surrogate pair
            raise RemoteError("missing", f"no file {path} ({e})") from e
        except OSError as e:
            if e.errno in NEVER_THERE:
                raise RemoteError("missing", f"no file {str(path)[:200]} ({e.strerror})") from e
            raise RemoteError("unreachable", f"{path}: {e}", retryable=True) from e

    @cached_property
    def _real(self) -> Path:
        """The folder itself, its links followed."""
        return Path(os.path.realpath(self.folder))


_ELSEWHERE = frozenset({301, 302, 303, 307, 308})


class Web:
    """Files below an https address."""

    def __init__(self, base: str, timeout_s: float, connections: int = 1) -> None:
        base, asks, query = base.partition("?")
        self.base = base.rstrip("/")
        self._query = asks + query  # such as a signature that holds for all that lies below
        self.timeout_s = timeout_s
        self.connections = connections

    def get(self, name: str) -> bytes:
        return patiently(lambda: self.once(name)).data

    def get_address(self, address: str) -> bytes:
        """The bytes at a full address of the same host."""
        return patiently(lambda: self._ask(address, None)).data

    def once(self, name: str, at_most: int | None = None) -> Fetched:
        return self._ask(f"{self.base}/{quote(safe_name(name))}{self._query}", at_most)

    def _ask(self, address: str, at_most: int | None) -> Fetched:
        reply = self._door.get(address, at_most=at_most)
        if reply.status in _ELSEWHERE:
            reply = self._follow(address)
        if reply.status != requests.codes.ok:
            raise refusal(reply.status, bare_address(address), wished_pause(reply.headers))
        if at_most is not None and len(reply.data) > at_most:
            raise RemoteError("too_large", f"{bare_address(address)} has {len(reply.data):,} bytes; at most {at_most:,} are read")
        return Fetched(reply.data, said_md5(reply.headers))

    def _follow(self, address: str) -> Reply:
        """The answer to a GET where redirects lead."""
        where = bare_address(address)
        try:
            answer = requests.get(address, timeout=self.timeout_s, headers={"Accept-Encoding": "identity"})
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as e:
            raise RemoteError("refused", f"{where} leads to what is no address") from e
        except requests.RequestException as e:
            offline = isinstance(e, requests.ConnectionError)
            raise RemoteError("unreachable", f"{where} leads elsewhere: {type(e).__name__}", retryable=True, offline=offline) from e
        return Reply(answer.status_code, answer.headers, answer.content)

    @cached_property
    def _door(self) -> Door:
        return Door(self.base, self.timeout_s, self.connections)


def said_md5(headers: Mapping[str, str]) -> str | None:
    """The md5 that a server says of what it sent, as hexadecimal: Content-MD5 (Azure), x-goog-hash (Google), S3's ETag.

    S3's ETag is an md5 for objects sent in one piece that are not encrypted with a key of KMS or of the customer.
    """
    for text in (headers.get("Content-MD5", ""), *(p.strip()[4:] for p in headers.get("x-goog-hash", "").split(",") if p.strip().startswith("md5="))):
        try:
            digest = base64.b64decode(text, validate=True).hex()
        except (binascii.Error, ValueError):
            continue
        if len(digest) == 32:
            return digest
    if "x-amz-request-id" not in headers or "kms" in headers.get("x-amz-server-side-encryption", ""):
        return None
    etag = headers.get("ETag", "").strip('"').lower()
    sealed = "x-amz-server-side-encryption-customer-algorithm" in headers
    return etag if len(etag) == 32 and not sealed and set(etag) <= set("0123456789abcdef") else None


NOT_US = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired"})
"""S3's words for credentials that are at fault, whatever is asked for: another run, with others, may succeed."""

_CODE = re.compile(rb"<Code>([A-Za-z0-9]+)</Code>")


class Bucket:
    """Objects below s3://bucket/prefix; boto3 finds region, credentials and address in its usual variables."""

    def __init__(self, base: str, connections: int, timeout_s: float) -> None:
        self.bucket, _, prefix = base.rstrip("/").removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.connections = connections
        self.timeout_s = timeout_s
        self._opening = threading.Lock()
        self._way: _Way | None = None

    def get(self, name: str) -> bytes:
        return patiently(lambda: self.once(name)).data

    def once(self, name: str, at_most: int | None = None) -> Fetched:
        key = self.prefix + safe_name(name)
        where = f"s3://{self.bucket}/{key}"
        way = self._open()
        reply = way.get(key, at_most)
        region = reply.headers.get("x-amz-bucket-region", "")
        if reply.status in {301, 307, 400} and region and region != way.region:
            reply = self._open(region).get(key, at_most)
        if reply.status == requests.codes.ok:
            return Fetched(reply.data, said_md5(reply.headers))
        raise _refused(reply, where)

    def _open(self, region: str | None = None) -> _Way:
        """The way to the bucket, found at first use; anew where S3 names another region."""
        way = self._way
        if way is not None and region in {None, way.region}:
            return way
        with self._opening:
            if self._way is None or region not in {None, self._way.region}:
                self._way = _find_way(self.bucket, region, self.connections, self.timeout_s)
            return self._way


class _Way:
    """Where a bucket is, and who asks: signed requests through one door."""

    def __init__(self, address: str, region: str, credentials: Credentials | None, door: Door) -> None:
        self.address = address
        self.region = region
        self._credentials = credentials
        self._door = door

    def get(self, key: str, at_most: int | None) -> Reply:
        address = self.address + quote(key, safe="/~")
        return self._door.get(address, self._signed(address), at_most)

    def _signed(self, address: str) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        if self._credentials is None:
            return {}
        request = AWSRequest("GET", address)
        S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)  # frozen anew each time: they expire
        return dict(request.headers.items())


def _find_way(bucket: str, region: str | None, connections: int, timeout_s: float) -> _Way:
    """Ask boto3 for the bucket's address and our credentials; public data is asked for unsigned where there are none.

    Raises:
        RemoteError: ``refused``: boto3 cannot tell, or there is no such name for a bucket.
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
        probe = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        address = probe.partition("?")[0].removesuffix("k")
        bundle = core.get_config_variable("ca_bundle")
    except (BotoCoreError, ValueError) as e:
        raise RemoteError("refused", f"s3://{bucket}: {e}") from e
    return _Way(address, client.meta.region_name, credentials, Door(address, timeout_s, connections, bundle))


def _refused(reply: Reply, where: str) -> RemoteError:
    """What S3's answer says, with its code where there is one."""
    found = _CODE.search(reply.data)
    code = found[1].decode() if found else ""
    where = f"{where} ({code})" if code else where
    if code in NOT_US:
        return RemoteError("forbidden", f"{where}: S3 does not take our credentials ({reply.status})", retryable=True, offline=True)
    return refusal(reply.status, where, wished_pause(reply.headers))


def remote_at(base: str, settings: Settings) -> Remote:
    """The base that an address or path names; ``lila://<set>`` means that set's pictures at the mirror of the settings."""
    if base.startswith(LILA):
        base = lila_images(base, settings.lila)
    if base.startswith("s3://"):
        return Bucket(base, settings.connections, settings.timeout_s)
    if base.startswith(("https://", "http://")):
        return Web(base, settings.timeout_s, settings.connections)
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


__all__ = [
    "ATTEMPTS",
    "Bucket",
    "Fetched",
    "Folder",
    "Remote",
    "RemoteError",
    "Web",
    "bare_address",
    "pause_s",
    "read_address",
    "remote_at",
    "safe_name",
]
