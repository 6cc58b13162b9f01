"""The step cache: what steps made, by content, in a folder or under s3://; never half written.

::

    format.json                     the version of this layout
    steps/<step>/<key>/…            a step's files; manifest.json is written last, so without it the step does not exist
    blobs/<2>/<sha256>              images and crops, named by their content
    memory/<name>/<shard>.jsonl     the image index: what is known of single images (downloaded, detected, cropped)
    work/<step>-<key>/              files of a running step (this machine only); a killed step goes on with them

A step's key is made from the step's declaration (:mod:`animl_pipeline.core.step`), its inputs and its part of the plan. A cached
artifact counts only while every file that its manifest names is there and unchanged; otherwise the step runs again.
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

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DamagedError, StoreError
from animl_pipeline.core.records import Artifact, Counts, Digest, Record
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import declared_table
from animl_pipeline.core.tables import Table, check_schema
from animl_pipeline.storage import image_index
from animl_pipeline.storage.locks import building
from animl_pipeline.storage.object_store import FolderObjectStore, ObjectStore, S3ObjectStore, disk_space

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger(__name__)

FORMAT = 2
"""The version of the store's layout. A store of another version is refused."""


class FileEntry(Record):
    """One file of a step."""

    sha256: Digest
    bytes: int


class BlobColumn(Record):
    """A table of the step whose rows name blobs: the step is whole only while all of them are there."""

    file: str
    column: str = "blob"
    size_column: str = "bytes"


class Manifest(Record):
    """What a step was made from and what it made. Written last."""

    step: str
    key: Digest
    digest: Digest
    inputs: dict[str, Digest]
    config: dict[str, Any]
    version: int
    libraries: dict[str, str]
    files: dict[str, FileEntry]
    blobs: tuple[BlobColumn, ...] = ()
    counts: Counts
    final: bool = True
    seconds: float
    made_at: str

    def artifact(self, *, cached: bool) -> Artifact:
        """The record of this step that travels."""
        return Artifact(step=self.step, key=self.key, digest=self.digest, counts=self.counts, cached=cached)


class StepOutput(NamedTuple):
    """What a step's builder says of what it wrote.

    ``final`` is False where a later try may do better with the same inputs (a server did not answer): such a step is
    used by this run and made again by the next.
    """

    counts: Counts
    blobs: tuple[BlobColumn, ...] = ()
    final: bool = True


class Workspace(NamedTuple):
    """Where a step's builder writes: ``out`` starts empty, ``scratch`` is what an earlier, killed try left behind."""

    out: Path
    scratch: Path


class Store:
    """A store at a place, with its local cache (for a folder, the folder itself)."""

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
        """The step's artifact: reused when the store holds it whole, else built now.

        Args:
            step: the step's declaration.
            inputs: artifacts it reads; their digests are part of the key.
            digests: other inputs by content, such as the sha256 of a file from outside.
            config: its part of the plan.
            build: writes the step's files into ``Workspace.out`` and counts what it kept and dropped.

        Raises:
            StoreError: the store cannot be written.
            Whatever ``build`` raises; the scratch of the try is kept for the next one.
        """
        known = {name: a.digest for name, a in (inputs or {}).items()} | dict(digests or {})
        plain = json.loads(config.model_dump_json(by_alias=True)) if isinstance(config, BaseModel) else dict(config or {})
        name, libraries = step.name, step.library_versions()
        key = digest_of({"format": FORMAT, "step": name, "version": step.version, "inputs": known, "config": plain, "libraries": libraries})
        with building(self.local / "work", name, key):
            manifest = self._whole_manifest(name, key)
            if manifest is not None:
                self.object_store.touch(_manifest_name(name, key))  # a step's age counts from its last use
                log.info("%s: cached, %s", name, manifest.counts)
                return manifest.artifact(cached=True)
            started = time.monotonic()
            space = self._open_workspace(name, key)
            with disk_space(space.out / name):
                made = build(space)
            files = {file: _entry(space.out / file) for file in _names(space.out)}
            manifest = Manifest(
                step=name, version=step.version, libraries=libraries, key=key, digest=_digest_of_files(files), inputs=known, config=plain,
                files=files, blobs=made.blobs, counts=made.counts, final=made.final, seconds=round(time.monotonic() - started, 3),
                made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            )  # fmt: skip
            self._commit(space, manifest)
            log.info("%s: made in %.1f s, %s", name, manifest.seconds, manifest.counts)
            return manifest.artifact(cached=False)

    def path(self, artifact: Artifact, name: str) -> Path:
        """A local, checked copy of one of an artifact's files.

        Raises:
            DamagedError: the file is not there or not what the manifest says; running the step again makes it anew.
        """
        manifest = self.manifest(artifact)
        entry = manifest.files.get(name)
        if entry is None:
            raise DamagedError(f"the step {artifact.step} made no file {name!r}; it made {', '.join(sorted(manifest.files))}")
        relative = f"steps/{artifact.step}/{artifact.key}/{name}"
        local = self.local / relative
        if not _matches(local, entry):
            self.object_store.fetch(relative, local)
        if not _matches(local, entry):
            raise DamagedError(f"{relative} in the store is not what its manifest says; run the step {artifact.step!r} again, it will be made anew")
        return local

    def files(self, artifact: Artifact) -> tuple[str, ...]:
        """The names of an artifact's files."""
        return tuple(sorted(self.manifest(artifact).files))

    def table(self, artifact: Artifact, table: Table | str, columns: list[str] | None = None) -> pd.DataFrame:
        """One of an artifact's Parquet tables as a data frame, all columns or some.

        Args:
            artifact: the step's artifact.
            table: the table, or its file name.
            columns: names of the columns to read; None: all.

        Raises:
            TableError: it does not have the columns that its step declares.
        """
        import pandas as pd

        return pd.read_parquet(self.table_path(artifact, table), columns=columns)

    def arrow_table(self, artifact: Artifact, table: Table | str, columns: list[str] | None = None, **options: Any) -> pa.Table:
        """As :meth:`table`, as a pyarrow table; ``options`` as :func:`pyarrow.parquet.read_table` takes them.

        Raises:
            TableError: it does not have the columns that its step declares.
        """
        import pyarrow.parquet as pq

        return pq.read_table(self.table_path(artifact, table), columns=columns, **options)

    def table_path(self, artifact: Artifact, table: Table | str) -> Path:
        """A local, checked copy of a Parquet table, whose columns are those that its step declares.

        Raises:
            TableError: they are not.
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
            raise DamagedError(f"the store at {self.object_store} holds no whole step {artifact.step!r} {artifact.key[:12]}; run it again")
        return manifest

    # -- blobs -------------------------------------------------------------------------------------------------------

    def put_blob(self, data: bytes, *, durable: bool = True, sha256: str = "") -> str:
        """Keep bytes under their sha256 (found out where it is not given), which comes back; what is there is not written again.

        Without ``lasting``, :meth:`Depot.settle` must come before anything is written that relies on them.
        """
        sha256 = sha256 or hashlib.sha256(data).hexdigest()
        self.object_store.put_new(_blob_name(sha256), data, durable=durable)
        return sha256

    def blob(self, sha256: str) -> bytes:
        """The bytes of a blob, checked.

        Raises:
            DamagedError: it is missing or changed.
        """
        data = self.object_store.read(_blob_name(sha256))
        if data is None:
            raise DamagedError(f"the store at {self.object_store} lacks the blob {sha256[:12]}; run the pipeline again, it will be made anew")
        if hashlib.sha256(data).hexdigest() != sha256:
            self.object_store.delete(_blob_name(sha256))  # so that the next run makes it anew instead of meeting it again
            raise DamagedError(
                f"the blob {sha256[:12]} had changed and was removed from the store at {self.object_store}; run the pipeline again, it will be made anew"
            )
        return data

    def has_blob(self, sha256: str, size: int) -> bool:
        """Whether a blob is there with its size (its content is checked when it is read)."""
        return self.object_store.size(_blob_name(sha256)) == size

    def has_blobs(self, sha256s: Sequence[str], sizes: Sequence[int]) -> list[bool]:
        """Of many blobs, whether each is there with its size; in S3 they are listed where that takes fewer requests."""
        found = self.object_store.sizes_of([_blob_name(sha256) for sha256 in sha256s])
        return [is_there == size for is_there, size in zip(found, sizes, strict=True)]

    # -- memory ------------------------------------------------------------------------------------------------------

    def recall(self, name: str, *, irreplaceable: bool = False) -> dict[str, dict[str, Any]]:
        """What is remembered under ``name``; see :func:`animl_pipeline.storage.image_index.recall`."""
        return image_index.recall(self.object_store, name, irreplaceable=irreplaceable)

    def remember(self, name: str, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember records under ``name``; see :func:`animl_pipeline.storage.image_index.remember`."""
        image_index.remember(self.object_store, name, records)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _open_workspace(self, step: str, key: str) -> Workspace:
        base = self.local / "work" / f"{step}-{key[:16]}"
        out, scratch = base / "out", base / "scratch"
        shutil.rmtree(out, ignore_errors=True)
        _make_folder(out)
        _make_folder(scratch)
        return Workspace(out, scratch)

    def _commit(self, space: Workspace, manifest: Manifest) -> None:
        prefix = f"steps/{manifest.step}/{manifest.key}"
        for name in manifest.files:
            self.object_store.put_file(f"{prefix}/{name}", space.out / name)
        self.object_store.put(f"{prefix}/manifest.json", manifest.model_dump_json(indent=1).encode())
        shutil.rmtree(space.out.parent, ignore_errors=True)

    def _read_manifest(self, step: str, key: str) -> Manifest | None:
        data = self.object_store.read(_manifest_name(step, key))
        if data is None:
            return None
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError:
            log.warning("%s: the manifest %s does not fit this version; making the step again", step, key[:12])
            return None
        if (manifest.step, manifest.key, manifest.digest) != (step, key, _digest_of_files(manifest.files)):
            log.warning("%s: the manifest %s had changed; making the step again", step, key[:12])
            return None
        return manifest

    def _whole_manifest(self, step: str, key: str) -> Manifest | None:
        """The manifest, if all that it names is there and unchanged."""
        manifest = self._read_manifest(step, key)
        if manifest is None or not manifest.final:
            return None
        try:
            for name in manifest.files:
                self.path(manifest.artifact(cached=True), name)
            for column in manifest.blobs:
                self._check_blobs(manifest, column)
        except DamagedError as e:
            log.warning("%s: made again, since %s", step, e)
            self.object_store.delete(_manifest_name(step, key))
            return None
        return manifest

    def _check_blobs(self, manifest: Manifest, column: BlobColumn) -> None:
        table = self.table(manifest.artifact(cached=True), column.file, [column.column, column.size_column])
        pairs = table[[column.column, column.size_column]].drop_duplicates()
        names, sizes = pairs[column.column].tolist(), pairs[column.size_column].tolist()
        for sha256, is_there in zip(names, self.has_blobs(names, sizes), strict=True):
            if not is_there:
                raise DamagedError(f"the blob {sha256[:12]} is missing or has another size")


def open_store(settings: Settings) -> Store:
    """The store that the settings name, made if it is a folder that is not there.

    Raises:
        StoreError: it cannot be reached or made.
    """
    if settings.store.startswith("s3://"):
        cache = settings.cache.expanduser() / "stores" / hashlib.sha256(settings.store.encode()).hexdigest()[:16]
        return Store(S3ObjectStore(settings.store), cache)
    folder = Path(settings.store).expanduser().resolve()
    _make_folder(folder)
    return Store(FolderObjectStore(folder), folder)


def digest_of(value: Any) -> str:
    """The sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """``items`` in lists of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _names(folder: Path) -> Iterable[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)


def _digest_of_files(files: Mapping[str, FileEntry]) -> str:
    return digest_of({name: entry.sha256 for name, entry in files.items()})


def _matches(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256
    except OSError:
        return False


def _manifest_name(step: str, key: str) -> str:
    return f"steps/{step}/{key}/manifest.json"


def _blob_name(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StoreError(f"the folder {folder} cannot be made ({e.strerror}); set ANIML_STORE to a folder that can be written") from e
