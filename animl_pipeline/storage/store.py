"""The step cache: artifacts of steps, stored by what they were made from, in a folder or in S3.

::

    format.json                     the version of this layout
    steps/<step>/<key>/…            a step's files; manifest.json is written last, so without it the step does not exist
    blobs/<2>/<sha256>              images and crops, named by their content
    index/<name>/<shard>.jsonl      the image index: what is known of single images (downloaded, detected, cropped)
    work/<step>-<key>/              files of a running step (this machine only); a step that was killed continues from them

A step's key is made from its declaration (:mod:`animl_pipeline.core.step_declaration`), its inputs and its part of the plan. A cached
artifact counts only while every file that its manifest names is there and unchanged. Otherwise the step runs again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ValidationError

from animl_pipeline.config.settings import Settings, check_store_address
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import DamagedError, StoreError
from animl_pipeline.core.frozen_record import Digest
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.tables import Table, check_schema
from animl_pipeline.core.tables_of_steps import declared_table
from animl_pipeline.storage import image_index
from animl_pipeline.storage.atomic_files import disk_errors, full_disk_errors
from animl_pipeline.storage.local_locks import step_lock
from animl_pipeline.storage.manifest import (
    BlobColumn,
    Manifest,
    describe_file,
    digest_of,
    digest_of_files,
    manifest_name,
    matches,
    parse_manifest,
    sha256_of,
    step_folder,
)
from animl_pipeline.storage.object_store import WORK, FolderObjectStore, ObjectStore, S3ObjectStore

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger(__name__)

FORMAT = 2
"""The version of the store's layout. A store of another version is refused."""
FORMAT_FILE = "format.json"
OLD_FOLDERS = ("steps/", "memory/")
"""What a store holds that was written before there was a format file."""


class StepOutput(NamedTuple):
    """What a step's builder returns.

    Attributes:
        counts: what it kept and dropped.
        blobs: its tables whose rows name blobs.
        final: False if a later try may do better with the same inputs, because a server did not answer. This run uses such a
            step; the next run makes it again.
        blob_digests: other blobs that the step needs, by sha256.
    """

    counts: Counts
    blobs: tuple[BlobColumn, ...] = ()
    final: bool = True
    blob_digests: tuple[Digest, ...] = ()


class Workspace(NamedTuple):
    """Where a step's builder writes: ``out`` is empty at first; ``scratch`` holds what an earlier, killed try left."""

    out: Path
    scratch: Path


class Store:
    """A step cache, the blobs and the image index in one object store, with a local folder for copies.

    ``local``: a folder of this machine for copies and running steps; for a folder, the folder itself.
    """

    def __init__(self, object_store: ObjectStore, local: Path) -> None:
        self.object_store = object_store
        self.local = local

    # -- steps -------------------------------------------------------------------------------------------------------

    def make(
        self,
        step: Step,
        *,
        inputs: Mapping[str, Artifact] | None = None,
        digests: Mapping[str, str] | None = None,
        config: BaseModel | Mapping[str, Any] | None = None,
        build: Callable[[Workspace], StepOutput],
    ) -> Artifact:
        """The step's artifact: reused if the store holds all of it, else built now.

        ``digests``: other inputs by content, such as the sha256 of a file from outside. ``build``: writes the step's files into
        ``Workspace.out`` and counts what it kept and dropped.

        Raises:
            StoreError: the store cannot be written.
            Exception: what ``build`` raises; the scratch folder stays for the next try.
        """
        known = {name: a.digest for name, a in (inputs or {}).items()} | dict(digests or {})
        values = json.loads(config.model_dump_json(by_alias=True)) if isinstance(config, BaseModel) else dict(config or {})
        key = step_key(step, known, values)
        with step_lock(self.local / WORK, step.name, key):
            manifest = self._complete_manifest(step.name, key)
            if manifest is not None:
                self.object_store.touch(manifest_name(step.name, key))  # garbage collection counts a step's age from its last use
                log.info("%s: cached, %s", step.name, manifest.counts)
                return manifest.artifact(cached=True)
            started = time.monotonic()
            space = self._open_workspace(step.name, key)
            with full_disk_errors(space.out / step.name):
                output = build(space)
            files = {name: describe_file(space.out / name) for name in _files_below(space.out)}
            manifest = Manifest(
                step=step.name, version=step.version, libraries=step.library_versions(), key=key, digest=digest_of_files(files), inputs=known,
                config=values, files=files, blobs=output.blobs, blob_digests=output.blob_digests, counts=output.counts, final=output.final,
                seconds=round(time.monotonic() - started, 3), made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )  # fmt: skip
            self._commit(space, manifest)
            log.info("%s: made in %.1f s, %s", step.name, manifest.seconds, manifest.counts)
            return manifest.artifact(cached=False)

    def path(self, artifact: Artifact, name: str) -> Path:
        """A local, checked copy of one of an artifact's files.

        Raises:
            DamagedError: the file is missing or differs from its manifest; another run makes it again.
        """
        manifest = self.manifest(artifact)
        entry = manifest.files.get(name)
        if entry is None:
            raise DamagedError(f"the step {artifact.step} made no file {name!r}; it made {', '.join(sorted(manifest.files))}")
        relative = f"{step_folder(artifact.step, artifact.key)}/{name}"
        local = self.local / relative
        if not matches(local, entry):
            self.object_store.fetch(relative, local)
        if not matches(local, entry):
            raise DamagedError(f"{relative} in the store differs from its manifest; run the step {artifact.step!r} again, which makes it again")
        return local

    def files(self, artifact: Artifact) -> tuple[str, ...]:
        """The names of an artifact's files."""
        return tuple(sorted(self.manifest(artifact).files))

    def table(self, artifact: Artifact, table: Table | str, columns: list[str] | None = None) -> pd.DataFrame:
        """One of an artifact's Parquet tables as a data frame.

        ``columns``: names of the columns to read; None: all.

        Raises:
            TableError: it does not have the columns that its step declares.
        """
        import pandas as pd

        return pd.read_parquet(self.table_path(artifact, table), columns=columns)

    def arrow_table(self, artifact: Artifact, table: Table | str, columns: list[str] | None = None, **options: Any) -> pa.Table:
        """As :meth:`table`, as a pyarrow table; ``options`` are those of :func:`pyarrow.parquet.read_table`.

        Raises:
            TableError: it does not have the columns that its step declares.
        """
        import pyarrow.parquet as pq

        return pq.read_table(self.table_path(artifact, table), columns=columns, **options)

    def table_path(self, artifact: Artifact, table: Table | str) -> Path:
        """A local, checked copy of a Parquet table with the columns that its step declares.

        Raises:
            TableError: it has other columns.
        """
        name = table if isinstance(table, str) else table.file
        path = self.path(artifact, name)
        declared = declared_table(artifact.step, name)
        if declared is not None:
            check_schema(path, declared)
        return path

    def manifest(self, artifact: Artifact) -> Manifest:
        """The manifest of an artifact.

        Raises:
            DamagedError: it is not there.
        """
        manifest = self._read_manifest(artifact.step, artifact.key)
        if manifest is None:
            raise DamagedError(f"the store at {self.object_store} does not hold the step {artifact.step!r} {artifact.key[:12]}; run it again")
        return manifest

    # -- blobs -------------------------------------------------------------------------------------------------------

    def put_blob(self, data: bytes, *, durable: bool = True, sha256: str = "") -> str:
        """Store bytes under their sha256, unless they are stored already; the sha256 comes back.

        If they are not ``durable``, call :meth:`ObjectStore.flush` before you write anything that relies on them.

        ``sha256``: their sha256, if the caller knows it.
        """
        sha256 = sha256 or hashlib.sha256(data).hexdigest()
        self.object_store.put_new(blob_name(sha256), data, durable=durable)
        return sha256

    def blob(self, sha256: str) -> bytes:
        """The bytes of a blob, checked.

        Raises:
            DamagedError: it is missing, or has changed and is removed now.
        """
        data = self.object_store.read(blob_name(sha256))
        if data is None:
            raise DamagedError(f"the store at {self.object_store} lacks the blob {sha256[:12]}; run the pipeline again, which makes it again")
        if hashlib.sha256(data).hexdigest() != sha256:
            self.object_store.delete(blob_name(sha256))
            raise DamagedError(
                f"the blob {sha256[:12]} in the store at {self.object_store} had changed and is removed now; run the pipeline again to make it again"
            )
        return data

    def has_blob(self, sha256: str, size: int) -> bool:
        """Whether a blob is there with its size (its content is checked when it is read)."""
        return self.object_store.size(blob_name(sha256)) == size

    def has_blobs(self, sha256s: Sequence[str], sizes: Sequence[int]) -> list[bool]:
        """For each of many blobs, whether it is there with its size."""
        found = self.object_store.sizes([blob_name(sha256) for sha256 in sha256s])
        return [actual == size for actual, size in zip(found, sizes, strict=True)]

    # -- image index -------------------------------------------------------------------------------------------------

    def read_index(self, name: str) -> dict[str, dict[str, Any]]:
        """All records of an index; see :func:`animl_pipeline.storage.image_index.read_index`."""
        return image_index.read_index(self.object_store, name)

    def add_to_index(self, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Add records to an index; see :func:`animl_pipeline.storage.image_index.add_to_index`."""
        image_index.add_to_index(self.object_store, name, records)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _open_workspace(self, step: str, key: str) -> Workspace:
        base = self.local / WORK / f"{step}-{key[:16]}"
        out, scratch = base / "out", base / "scratch"
        shutil.rmtree(out, ignore_errors=True)
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            scratch.mkdir(exist_ok=True)
        return Workspace(out, scratch)

    def _commit(self, space: Workspace, manifest: Manifest) -> None:
        folder = step_folder(manifest.step, manifest.key)
        for name in manifest.files:
            self.object_store.put_file(f"{folder}/{name}", space.out / name)
        self.object_store.put(manifest_name(manifest.step, manifest.key), manifest.with_checksum().model_dump_json(indent=1).encode())
        shutil.rmtree(space.out.parent, ignore_errors=True)

    def _read_manifest(self, step: str, key: str) -> Manifest | None:
        data = self.object_store.read(manifest_name(step, key))
        if data is None:
            return None
        try:
            return parse_manifest(data, step, key)
        except ValidationError:
            log.warning("%s: the manifest %s is not one of this version; the step runs again", step, key[:12])
        except ValueError as e:
            log.warning("%s: the manifest %s has changed (%s); the step runs again", step, key[:12], e)
        return None

    def _complete_manifest(self, step: str, key: str) -> Manifest | None:
        """The manifest, if everything that it names is there and unchanged."""
        manifest = self._read_manifest(step, key)
        if manifest is None or not manifest.final:
            return None
        try:
            for name in manifest.files:
                self.path(manifest.artifact(cached=True), name)
            for column in manifest.blobs:
                self._check_blobs(manifest, column)
        except DamagedError as e:
            log.warning("%s: runs again, because %s", step, e)
            self.object_store.delete(manifest_name(step, key))
            return None
        return manifest

    def _check_blobs(self, manifest: Manifest, column: BlobColumn) -> None:
        table = self.table(manifest.artifact(cached=True), column.file, [column.column, column.size_column])
        pairs = table[[column.column, column.size_column]].drop_duplicates()
        names, sizes = pairs[column.column].tolist(), pairs[column.size_column].tolist()
        for sha256, is_there in zip(names, self.has_blobs(names, sizes), strict=True):
            if not is_there:
                raise DamagedError(f"the blob {sha256[:12]} is missing or has another size")


def step_key(step: Step, inputs: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """The key of a step's artifact.

    ``inputs``: name → digest of what the step reads.
    """
    libraries = step.library_versions()
    return digest_of({"format": FORMAT, "step": step.name, "version": step.version, "inputs": dict(inputs), "config": config, "libraries": libraries})


def open_store(settings: Settings, address: str = "") -> Store:
    """The store at an address. A folder that is not there is made.

    ``address``: a folder or s3://bucket/prefix.

    Raises:
        StoreError: the store cannot be reached, made or written, or has another format (code ``store_format``).
    """
    try:
        address = check_store_address(address or settings.store)
    except ValueError as e:
        raise StoreError(f"the store's address is not valid: {e}", code="store_address") from e
    if address.startswith("s3://"):
        local = settings.cache.expanduser() / "stores" / hashlib.sha256(address.encode()).hexdigest()[:16]
        store = Store(S3ObjectStore(address), local)
    else:
        folder = Path(address).expanduser().resolve()
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        store = Store(FolderObjectStore(folder), folder)
    _check_format(store.object_store)
    return store


def _check_format(object_store: ObjectStore) -> None:
    """Compare the store's format with this version's; write it into a new store."""
    data = object_store.read(FORMAT_FILE)
    if data is None and not any(next(object_store.objects(folder), None) for folder in OLD_FOLDERS):
        object_store.put(FORMAT_FILE, json.dumps({"format": FORMAT}).encode())
        return
    try:
        found = json.loads(data)["format"] if data else "none"
    except (ValueError, KeyError, TypeError):
        found = "unreadable"
    if found != FORMAT:
        raise StoreError(
            f"the store at {object_store} has the format {found}, this version reads the format {FORMAT}; set ANIML_STORE to an empty store, or use "
            "the version of animl-pipeline that wrote this one",
            code="store_format", expected=FORMAT, found=found,
        )  # fmt: skip


def blob_name(sha256: str) -> str:
    """The name of a blob in the object store."""
    return f"blobs/{sha256[:2]}/{sha256}"


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """``items`` in lists of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _files_below(folder: Path) -> Iterable[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


__all__ = ["BlobColumn", "Manifest", "StepOutput", "Store", "Workspace", "batches", "blob_name", "digest_of", "open_store", "sha256_of", "step_key"]
