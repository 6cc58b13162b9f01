"""Object stores: a folder or an S3 prefix, with the same methods. An object is always whole.

In a folder, an object is written to ``work/parts``, flushed to the disk and renamed. The next process that writes removes what a killed
process left there. S3 shows only whole objects.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import tenacity
from filelock import FileLock
from requests.structures import CaseInsensitiveDict

from animl_pipeline.core.errors import StoreError, StoreUnreachableError
from animl_pipeline.storage.atomic_files import TEMPORARY, disk_errors, remove_leftovers, write_atomic
from animl_pipeline.storage.read_remote_files import BAD_CREDENTIALS, sent_md5

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, ObjectIdentifierTypeDef, ObjectTypeDef

T = TypeVar("T")

WORK = "work"
"""Folder of what is under way on this machine; it is no part of the store's content."""
PARTS = "parts"
"""Folder in it for objects that are being written."""
ABSENT_LOCK = "put-if-absent.lock"
"""File in it that is locked while an object is written only if it is absent."""
S3_CONNECTIONS = 64
"""Connections kept open to S3: so many threads may write at a time."""
S3_LISTINGS = 16
"""Folders that are listed at a time."""
LIST_ABOVE = 4
"""Sizes of at most this many objects of one S3 folder are asked one by one; for more, the folder is listed."""
S3_DELETE_BATCH = 1000
"""S3 deletes at most this many objects in one request."""
READ_ATTEMPTS = 5
"""How often an object is read whose body breaks off or has wrong bytes."""
BUSY_CODES = frozenset({"SlowDown", "Throttling", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted"})
"""S3's error codes for what passes by itself."""


class _BrokenBodyError(StoreUnreachableError):
    """An object did not arrive as S3 holds it."""


class StoredObject(NamedTuple):
    """An object: its name, its size in bytes, and when it was written or touched last, in seconds since 1970."""

    name: str
    bytes: int
    modified: float


class ObjectStore(ABC):
    """Bytes by name. Names are relative paths with '/'.

    All methods raise StoreError for what a person must fix, and StoreUnreachableError if another try may succeed.
    """

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The bytes of an object; None if there is none."""

    @abstractmethod
    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """The sizes of many objects in bytes; None for each that is not there."""

    @abstractmethod
    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write or overwrite an object. If it is not ``durable``, a power cut may lose it until :meth:`flush`."""

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one of this name; whether it was written. Of several writers at once, one succeeds."""

    @abstractmethod
    def put_file(self, name: str, source: Path) -> None:
        """Move a local file into the store."""

    @abstractmethod
    def fetch(self, name: str, target: Path) -> None:
        """Copy an object to a local file; nothing happens if there is none. A folder is its own local copy."""

    @abstractmethod
    def delete_many(self, names: Sequence[str]) -> None:
        """Delete objects, in few requests; nothing happens for those that are not there."""

    @abstractmethod
    def touch(self, name: str) -> None:
        """Set an object's time to now; nothing happens if there is none."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects under a prefix that ends with '/' or is empty."""

    def flush(self) -> None:  # noqa: B027 - S3 has nothing to flush
        """Make everything written so far survive a power cut."""

    def put_new(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """As :meth:`put`, unless an object of the same size is there (for names that are digests of the content)."""
        if self.size(name) != len(data):
            self.put(name, data, durable=durable)

    def size(self, name: str) -> int | None:
        """The size of an object in bytes; None if there is none."""
        return self.sizes([name])[0]

    def total_bytes(self) -> int:
        """The size of all objects."""
        return sum(found.bytes for found in self.objects(""))

    def names(self, prefix: str) -> Iterator[str]:
        """The names of all objects under a prefix that ends with '/', in order."""
        yield from sorted(found.name for found in self.objects(prefix))

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens if there is none."""
        self.delete_many([name])


class FolderObjectStore(ObjectStore):
    """An object store in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cleaned = False  # whether temporary files of killed processes were removed

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self._unreadable(name, e) from e

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        base = f"{self.folder}/"
        found: list[int | None] = []
        for name in names:
            try:
                found.append(os.stat(base + name).st_size)  # noqa: PTH116 - a Path for each of a million names takes twice the time
            except FileNotFoundError:
                found.append(None)
            except OSError as e:
                raise self._unreadable(name, e) from e
        return found

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        parts = self.folder / WORK / PARTS
        if not self._cleaned:
            self._cleaned = True
            with disk_errors(parts):
                remove_leftovers(parts)
        write_atomic(self.folder / name, data, durable=durable, temporary_folder=parts)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        with disk_errors(self.folder / WORK):
            (self.folder / WORK).mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / WORK / ABSENT_LOCK)
            lock.acquire()
        try:
            if self.size(name) is not None:
                return False
            self.put(name, data)
            return True
        finally:
            lock.release()

    def flush(self) -> None:
        os.sync()

    def put_file(self, name: str, source: Path) -> None:
        target = self.folder / name
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as f:
                os.fsync(f.fileno())
            source.replace(target)

    def fetch(self, name: str, target: Path) -> None:
        pass

    def delete_many(self, names: Sequence[str]) -> None:
        for name in names:
            with disk_errors(self.folder / name):
                (self.folder / name).unlink(missing_ok=True)
        for folder in sorted({(self.folder / name).parent for name in names}, reverse=True):
            with suppress(OSError):  # the folder is not empty, or it is gone already
                folder.rmdir()

    def touch(self, name: str) -> None:
        with disk_errors(self.folder / name), suppress(FileNotFoundError):
            os.utime(self.folder / name)

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        folders = [prefix.rstrip("/")]
        while folders:
            for name, is_folder in self._list(folders.pop()):
                if is_folder:
                    folders += [name] if name != WORK else []
                    continue
                try:
                    found = os.stat(f"{self.folder}/{name}")  # noqa: PTH116 - as above
                except FileNotFoundError:  # deleted meanwhile
                    continue
                yield StoredObject(name, found.st_size, found.st_mtime)

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        """The names in a folder without temporary files, and whether each is a folder."""
        try:
            with os.scandir(self.folder / folder) as entries:
                prefix = f"{folder}/" if folder else ""
                return sorted((prefix + e.name, e.is_dir()) for e in entries if not e.name.startswith(TEMPORARY))
        except FileNotFoundError:
            return []
        except OSError as e:
            raise self._unreadable(folder, e) from e

    def _unreadable(self, name: str, error: OSError) -> StoreError:
        path = self.folder / name
        return StoreError(f"{path} cannot be read ({error.strerror}); repair or remove it, then run again", code="cannot_read")


class S3ObjectStore(ObjectStore):
    """An object store below s3://bucket/prefix."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.bucket, _, prefix = self.address.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self._client: S3Client | None = None

    def __str__(self) -> str:
        return self.address

    @property
    def client(self) -> S3Client:
        """boto3's client, made at first use."""
        if self._client is None:
            import boto3
            from botocore.config import Config

            self._client = boto3.client("s3", config=Config(max_pool_connections=S3_CONNECTIONS))
        return self._client

    def read(self, name: str) -> bytes | None:
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_BrokenBodyError), stop=tenacity.stop_after_attempt(READ_ATTEMPTS),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=5), reraise=True,
        )  # fmt: skip
        return self._call(lambda: again(self._read_whole, name))

    def _read_whole(self, name: str) -> bytes:
        """The bytes of an object. boto3 tries again if a request fails, but not if the body breaks off or has other bytes than sent."""
        from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError

        answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)
        try:
            data = answer["Body"].read()
        except (HTTPClientError, IncompleteReadError, FlexibleChecksumError) as e:
            raise _BrokenBodyError(f"{self.address}/{name} did not arrive whole ({type(e).__name__}); run again", code="unreachable") from e
        md5 = sent_md5(CaseInsensitiveDict(answer["ResponseMetadata"]["HTTPHeaders"]))
        if md5 is not None and md5 != hashlib.md5(data, usedforsecurity=False).hexdigest():
            raise _BrokenBodyError(f"{self.address}/{name} arrived with other bytes than S3 holds; run again", code="unreachable")
        return data

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        folders: dict[str, list[str]] = defaultdict(list)
        for name in names:
            folders[name.rpartition("/")[0]].append(name)
        known: dict[str, int | None] = {}
        _ = self.client  # made here: boto3 makes clients in one thread at a time
        with ThreadPoolExecutor(S3_LISTINGS) as pool:  # blobs are in 256 folders
            for of_folder in pool.map(self._sizes_in, folders, folders.values()):
                known |= of_folder
        return [known[name] for name in names]

    def _sizes_in(self, folder: str, names: Sequence[str]) -> dict[str, int | None]:
        if len(names) <= LIST_ABOVE:
            return {name: self._size(name) for name in names}
        listed = {found.name: found.bytes for found in self.objects(f"{folder}/")}
        return {name: listed.get(name) for name in names}

    def _size(self, name: str) -> int | None:
        return self._call(lambda: self.client.head_object(Bucket=self.bucket, Key=self.prefix + name)["ContentLength"])

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        self._call(lambda: self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data))

    def put_if_absent(self, name: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        def put() -> bool:
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data, IfNoneMatch="*")
            except ClientError as e:
                if e.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in {409, 412}:  # another writer was first, or is writing now
                    return False
                raise
            return True

        return bool(self._call(put))

    def put_file(self, name: str, source: Path) -> None:
        self._call(lambda: self.client.upload_file(str(source), self.bucket, self.prefix + name))
        source.unlink()

    def fetch(self, name: str, target: Path) -> None:
        data = self.read(name)
        if data is not None:
            write_atomic(target, data)

    def delete_many(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), S3_DELETE_BATCH):
            keys: list[ObjectIdentifierTypeDef] = [{"Key": self.prefix + name} for name in names[start : start + S3_DELETE_BATCH]]
            answer = self._call(lambda k=keys: self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": k, "Quiet": True}))  # type: ignore[misc]  # a lambda's default
            if answer and (errors := answer.get("Errors")):
                raise self._error_of(errors[0].get("Code", ""), 0, f"DeleteObjects ({errors[0].get('Key')})")

    def touch(self, name: str) -> None:
        key = self.prefix + name
        itself: CopySourceTypeDef = {"Bucket": self.bucket, "Key": key}
        self._call(lambda: self.client.copy_object(Bucket=self.bucket, Key=key, CopySource=itself, MetadataDirective="REPLACE"))

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        for item in self._list(prefix):
            yield StoredObject(item["Key"].removeprefix(self.prefix), item["Size"], item["LastModified"].timestamp())

    def _list(self, prefix: str) -> Iterator[ObjectTypeDef]:
        """S3's answer for each object under a prefix, a page of a thousand at a time."""
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix))
        while page := self._call(lambda: next(pages, None)):
            yield from page.get("Contents", [])

    def _call(self, call: Callable[[], T]) -> T | None:
        """The result of ``call``; None if the object is not there.

        Raises:
            StoreError: S3 refused it: no permission, no such bucket, no credentials.
            StoreUnreachableError: S3 did not answer, or answered that it is overloaded.
        """
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            return call()
        except ClientError as e:
            if e.response.get("Error", {}).get("Code", "") in {"NoSuchKey", "404", "NotFound"}:
                return None
            raise self._refused(e) from e
        except S3UploadFailedError as e:
            cause = e.__context__
            raise (self._refused(cause) if isinstance(cause, ClientError) else self._unreachable(e)) from e
        except (BotoCoreError, ResponseParserError) as e:
            raise self._unreachable(e) from e

    def _refused(self, error: ClientError) -> StoreError:
        code = error.response.get("Error", {}).get("Code", "")
        return self._error_of(code, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), error.operation_name)

    def _error_of(self, code: str, status: int, operation: str) -> StoreError:
        """The error for a code of S3, which may come with the status 200 too."""
        if status >= 500 or status == 429 or code in BUSY_CODES:
            return StoreUnreachableError(f"S3 is overloaded: {code} at {operation} for {self.address}; run again", code="unreachable")
        if code in BAD_CREDENTIALS:
            return StoreError(f"S3 does not accept the credentials: {code} at {operation} for {self.address}; renew them", code="refused")
        return StoreError(
            f"S3 refused {self.address}: {code} at {operation}; check the bucket's name, its region and your permissions on it", code="refused"
        )

    def _unreachable(self, error: Exception) -> StoreError:
        from botocore.exceptions import ConnectionError as NoConnection
        from botocore.exceptions import HTTPClientError, IncompleteReadError
        from botocore.parsers import ResponseParserError

        retryable = isinstance(error, (NoConnection, HTTPClientError, IncompleteReadError, ResponseParserError))
        text = f"{self.address} cannot be reached: {error}; check the network, the bucket's name and AWS's usual variables, or set ANIML_STORE"
        return StoreUnreachableError(text, code="unreachable") if retryable else StoreError(text, code="refused")
