"""Where bytes lie: a folder or an S3 prefix, with the same few verbs. What is there is always whole.

In a folder a file is written in the process's own corner (``work/parts``), flushed to the disk and renamed; what a killed
process left in its corner the next one removes. S3 objects appear whole by nature.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from animl_pipeline.core.errors import StoreError
from animl_pipeline.storage.atomic_files import Corner, settle

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, ObjectIdentifierTypeDef, ObjectTypeDef

T = TypeVar("T")

CONNECTIONS = 64
"""Kept open to an S3 store: so many threads may put pictures into it."""
FEW = 4
"""Of so many names in an S3 folder each is asked for; of more, the folder is listed."""
MOST_AT_ONCE = 1000
"""S3 deletes so many objects in a request."""


class StoredObject(NamedTuple):
    """What lies in a depot: its name, its bytes, and when it was written or touched last, in seconds since 1970."""

    name: str
    bytes: int
    at: float


class ObjectStore(Protocol):
    """Bytes by name; names are relative paths with '/'."""

    def read(self, name: str) -> bytes | None:
        """The bytes, or None where there are none."""

    def size(self, name: str) -> int | None:
        """How many bytes there are, or None."""

    def sizes_of(self, names: Sequence[str]) -> list[int | None]:
        """How many bytes each of many names has, or None."""

    def total(self) -> int:
        """How many bytes lie here in all, scratch left out."""

    def put(self, name: str, data: bytes) -> None:
        """Write or overwrite."""

    def put_new(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write, unless something of the same size is there (for names that are digests of the content).

        Without ``lasting`` a power cut may undo it until :meth:`settle`.
        """

    def settle(self) -> None:
        """All that was put so far survives a power cut from now on."""

    def put_file(self, name: str, source: Path) -> None:
        """Move a local file in."""

    def fetch(self, name: str, target: Path) -> None:
        """Copy to a local file, where that is another place than this; nothing happens when it is not there."""

    def delete(self, name: str) -> None:
        """Remove; nothing happens when it is not there."""

    def delete_all(self, names: Sequence[str]) -> None:
        """Remove many, in few requests where there are requests."""

    def touch(self, name: str) -> None:
        """Note that it was used now; nothing happens when it is not there."""

    def names(self, prefix: str) -> Iterator[str]:
        """All names under a prefix that ends with '/'."""

    def lying(self, prefix: str) -> Iterator[StoredObject]:
        """All that lies under a prefix that ends with '/' or is empty, scratch left out."""


class FolderObjectStore:
    """Bytes below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._corner = Corner(folder / "work" / "parts")

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self._unreadable(name, e) from e

    def size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as e:
            raise self._unreadable(name, e) from e

    def sizes_of(self, names: Sequence[str]) -> list[int | None]:
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

    def total(self) -> int:
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file() and p.relative_to(self.folder).parts[0] != "work")

    def put(self, name: str, data: bytes) -> None:
        self._put(name, data, durable=True)

    def put_new(self, name: str, data: bytes, *, durable: bool = True) -> None:
        if self.size(name) != len(data):
            self._put(name, data, durable=durable)

    def _put(self, name: str, data: bytes, *, durable: bool) -> None:
        target = self.folder / name
        with disk(target):
            try:
                self._corner.write(target, data, durable=durable)
            except OSError as e:
                if e.errno != errno.EXDEV:  # a part of the store may lie on a disk of its own
                    raise
                write_whole(target, data)

    def settle(self) -> None:
        with disk(self.folder):
            settle(self.folder)

    def put_file(self, name: str, source: Path) -> None:
        target = self.folder / name
        with disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as f:
                os.fsync(f.fileno())
            source.replace(target)

    def fetch(self, name: str, target: Path) -> None:
        """Nothing to do: the folder is its own local copy."""

    def delete(self, name: str) -> None:
        with disk(self.folder / name):
            (self.folder / name).unlink(missing_ok=True)

    def delete_all(self, names: Sequence[str]) -> None:
        for name in names:
            self.delete(name)
        for folder in sorted({(self.folder / name).parent for name in names}, reverse=True):
            with suppress(OSError):  # something lies in it, or it went with another
                folder.rmdir()

    def touch(self, name: str) -> None:
        with disk(self.folder / name), suppress(FileNotFoundError):
            os.utime(self.folder / name)

    def names(self, prefix: str) -> Iterator[str]:
        for path in sorted((self.folder / prefix).rglob("*")):
            if path.is_file() and not path.name.startswith(".part-"):
                yield path.relative_to(self.folder).as_posix()

    def lying(self, prefix: str) -> Iterator[StoredObject]:
        todo = [prefix.rstrip("/")]
        while todo:
            folder = todo.pop()
            for name, is_folder in self._inside(folder):
                if is_folder:
                    todo += [name] if name != "work" else []
                    continue
                try:
                    found = os.stat(f"{self.folder}/{name}")  # noqa: PTH116 - as above
                except FileNotFoundError:  # it went meanwhile
                    continue
                yield StoredObject(name, found.st_size, found.st_mtime)

    def _inside(self, folder: str) -> list[tuple[str, bool]]:
        """The names of what lies in a folder, files being written left out; whether each is a folder."""
        try:
            with os.scandir(self.folder / folder) as entries:
                prefix = f"{folder}/" if folder else ""
                return sorted((prefix + e.name, e.is_dir()) for e in entries if not e.name.startswith(".part-"))
        except FileNotFoundError:
            return []
        except OSError as e:
            raise self._unreadable(folder, e) from e

    def _unreadable(self, name: str, error: OSError) -> StoreError:
        return StoreError(f"{self.folder / name} cannot be read ({error.strerror}); mend or remove it, what is missing is made anew")


class S3ObjectStore:
    """Bytes below s3://bucket/prefix."""

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

            self._client = boto3.client("s3", config=Config(max_pool_connections=CONNECTIONS))
        return self._client

    def read(self, name: str) -> bytes | None:
        return self._ask(lambda: self.client.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read())  # noqa: PLW0108 - the call itself must be inside _ask

    def size(self, name: str) -> int | None:
        return self._ask(lambda: self.client.head_object(Bucket=self.bucket, Key=self.prefix + name)["ContentLength"])

    def sizes_of(self, names: Sequence[str]) -> list[int | None]:
        folders: dict[str, list[str]] = defaultdict(list)
        for name in names:
            folders[name.rpartition("/")[0]].append(name)
        known: dict[str, int | None] = {}
        for folder, inside in folders.items():
            if len(inside) > FEW:
                listed = dict(self._listed(f"{folder}/"))
                known |= {name: listed.get(name) for name in inside}
            else:
                known |= {name: self.size(name) for name in inside}
        return [known[name] for name in names]

    def total(self) -> int:
        return sum(size for _, size in self._listed(""))

    def put(self, name: str, data: bytes) -> None:
        self._ask(lambda: self.client.put_object(Bucket=self.bucket, Key=self.prefix + name, Body=data))

    def put_new(self, name: str, data: bytes, *, durable: bool = True) -> None:
        if self.size(name) != len(data):
            self.put(name, data)

    def settle(self) -> None:
        """Nothing to do: what S3 took lasts."""

    def put_file(self, name: str, source: Path) -> None:
        self._ask(lambda: self.client.upload_file(str(source), self.bucket, self.prefix + name))
        source.unlink()

    def fetch(self, name: str, target: Path) -> None:
        data = self.read(name)
        if data is not None:
            write_whole(target, data)

    def delete(self, name: str) -> None:
        self._ask(lambda: self.client.delete_object(Bucket=self.bucket, Key=self.prefix + name))

    def delete_all(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), MOST_AT_ONCE):
            keys: list[ObjectIdentifierTypeDef] = [{"Key": self.prefix + name} for name in names[start : start + MOST_AT_ONCE]]
            answer = self._ask(lambda k=keys: self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": k, "Quiet": True}))  # type: ignore[misc]  # a lambda's default
            if answer and (faults := answer.get("Errors")):
                raise StoreError(f"S3 did not delete {faults[0].get('Key')} ({faults[0].get('Code')}); check your permissions on {self.address}")

    def touch(self, name: str) -> None:
        key = self.prefix + name
        itself: CopySourceTypeDef = {"Bucket": self.bucket, "Key": key}
        self._ask(lambda: self.client.copy_object(Bucket=self.bucket, Key=key, CopySource=itself, MetadataDirective="REPLACE"))

    def names(self, prefix: str) -> Iterator[str]:
        for name, _ in self._listed(prefix):
            yield name

    def lying(self, prefix: str) -> Iterator[StoredObject]:
        for item in self._objects(prefix):
            yield StoredObject(item["Key"].removeprefix(self.prefix), item["Size"], item["LastModified"].timestamp())

    def _listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names and sizes under a prefix."""
        for item in self._objects(prefix):
            yield item["Key"].removeprefix(self.prefix), item["Size"]

    def _objects(self, prefix: str) -> Iterator[ObjectTypeDef]:
        """What S3 says of each object under a prefix, a page of a thousand at a time."""
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix))
        while page := self._ask(lambda: next(pages, None)):
            yield from page.get("Contents", [])

    def _ask(self, call: Callable[[], T]) -> T | None:
        """``call``'s answer, None for a missing object, one clear line for everything else."""
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call()
        except ClientError as e:
            code = e.response.get("Error", {}).get("Code", "")
            if code in {"NoSuchKey", "404", "NotFound"}:
                return None
            raise StoreError(
                f"S3 refused {self.address}: {code} at {e.operation_name}; check the bucket's name, its region and your permissions on it"
            ) from e
        except (BotoCoreError, S3UploadFailedError) as e:
            raise StoreError(
                f"{self.address} cannot be reached: {e}; check the network, the bucket's name and AWS's usual variables, or set ANIML_STORE"
            ) from e


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def disk_space(path: Path) -> Iterator[None]:
    """Turn a full disk into one clear line; other faults pass. ``path`` is what is written where the fault does not name it."""
    try:
        yield
    except OSError as e:
        if e.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        where = Path(e.filename) if isinstance(e.filename, str) else path
        free = shutil.disk_usage(_existing(where.absolute())).free
        raise StoreError(f"the disk of {where.parent} is full ({free / 1e6:.0f} MB left); make room and run again, all that was made is kept") from e


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn what a disk answers into one clear line."""
    try:
        with disk_space(path):
            yield
    except OSError as e:
        raise StoreError(f"{path} cannot be written ({e.strerror}); check the folder's permissions or set ANIML_STORE to another") from e


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    return next(p for p in path.parents if p.exists())
