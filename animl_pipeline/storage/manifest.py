"""The manifest of a step: what it was made from, its files with their digests, and the blobs that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.frozen_record import Digest, Record

if TYPE_CHECKING:
    from animl_pipeline.storage.object_store import ObjectStore

MANIFEST_FILE = "manifest.json"


class FileEntry(Record):
    """One file of a step."""

    sha256: Digest
    bytes: int


class BlobColumn(Record):
    """A table of the step whose rows name blobs. The step is complete only while all of them are in the store."""

    file: str
    column: str = "blob"
    size_column: str = "bytes"


class Manifest(Record):
    """The record of a step in the store. It is written last: without it, the step does not exist.

    ``blobs`` and ``blob_digests`` declare every blob that the step needs; garbage collection keeps no others. ``final`` is
    explained at :class:`animl_pipeline.storage.store.StepOutput`. ``checksum`` is "" in manifests of earlier versions, which had none.
    """

    step: str
    key: Digest
    digest: Digest
    inputs: dict[str, Digest]
    config: dict[str, Any]
    version: int
    libraries: dict[str, str]
    files: dict[str, FileEntry]
    blobs: tuple[BlobColumn, ...] = ()
    blob_digests: tuple[Digest, ...] = ()
    counts: Counts
    final: bool = True
    seconds: float
    made_at: str
    checksum: str = ""

    def with_checksum(self) -> Manifest:
        """The same manifest with the digest of everything else in it as its checksum."""
        return self.model_copy(update={"checksum": digest_of(json.loads(self.model_dump_json(exclude={"checksum"})))})

    def artifact(self, *, cached: bool) -> Artifact:
        """The artifact that this manifest describes."""
        return Artifact(step=self.step, key=self.key, digest=self.digest, counts=self.counts, cached=cached)


def parse_manifest(data: bytes, step: str, key: str) -> Manifest:
    """The manifest of the step ``step`` with the key ``key``.

    Raises:
        ValueError: the data is not a manifest (pydantic's ValidationError), or not that step's.
    """
    manifest = Manifest.model_validate_json(data)
    if (manifest.step, manifest.key, manifest.digest) != (step, key, digest_of_files(manifest.files)):
        raise ValueError(f"it is the manifest of {manifest.step} {manifest.key[:12]}, or its digest is not that of its files")
    if manifest.checksum not in {"", manifest.with_checksum().checksum}:
        raise ValueError("its content does not have its checksum")
    return manifest


def find_artifact(objects: ObjectStore, step: str, digest: str) -> Artifact | None:
    """An artifact of a step by the digest of its files, by which manifests name their inputs; None if none with a readable manifest is stored."""
    folder = f"steps/{step}/"
    for name in objects.names(folder):
        key, _, file = name.removeprefix(folder).partition("/")
        data = objects.read(name) if file == MANIFEST_FILE else None
        try:
            manifest = parse_manifest(data, step, key) if data is not None else None
        except ValueError:  # of another version, or changed: not one that may be used
            continue
        if manifest is not None and manifest.digest == digest:
            return manifest.artifact(cached=True)
    return None


def step_folder(step: str, key: str) -> str:
    """The folder of a step in the store."""
    return f"steps/{step}/{key}"


def manifest_name(step: str, key: str) -> str:
    """The name of a step's manifest in the store."""
    return f"{step_folder(step, key)}/{MANIFEST_FILE}"


def digest_of(value: Any) -> str:
    """The sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_files(files: Mapping[str, FileEntry]) -> str:
    """The digest of a step's files: of their names and contents."""
    return digest_of({name: entry.sha256 for name, entry in files.items()})


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def describe_file(path: Path) -> FileEntry:
    """The entry of a local file."""
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)


def matches(path: Path, entry: FileEntry) -> bool:
    """Whether a local file is there and has the size and content of its entry."""
    try:
        return path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256
    except OSError:
        return False
