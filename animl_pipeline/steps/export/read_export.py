"""An export as a file: fetched from a path, an https or an s3 address, unpacked, parsed strictly."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.steps.export import json_stream
from animl_pipeline.steps.export.archives import own_names
from animl_pipeline.storage.object_store import disk_errors, full_disk_errors
from animl_pipeline.storage.remote_files import RemoteError, read_path_or_url

PARTS = ("images", "annotations", "categories")
LARGEST = 16 << 30
"""An archive's file may have at most so many bytes unpacked: 16 GiB, some fifteen million images."""
_CHUNK = 1 << 20


@contextmanager
def fetched(source: SourceConfig, settings: Settings, work: Path) -> Iterator[Path]:
    """What a source names, as it is, as a local file: the plan's own, or a copy that lasts as long as the block."""
    path = _local(source, settings)
    if path is not None:
        yield path
        return
    with scratch(work) as folder:
        path = folder / "fetched"
        with disk_errors(work):
            path.write_bytes(_bytes(source, settings))
        yield path


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """A folder of its own below ``work``, for as long as the block."""
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=work, prefix="export-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


def _local(source: SourceConfig, settings: Settings) -> Path | None:
    """The file itself, where the source is one on this machine that can be read."""
    if "://" in source.export:
        return None
    path = settings.data_path(source.export)
    return path if os.path.isfile(path) and os.access(path, os.R_OK) else None  # noqa: PTH113 - Path.is_file raises where a name is too long


def _bytes(source: SourceConfig, settings: Settings) -> bytes:
    try:
        return read_path_or_url(source.export, settings)
    except RemoteError as e:
        hint = "" if "://" in source.export else " (relative paths start at ANIML_DATA)"
        raise ExportError(
            f"source {source.name!r}: expected an export at {redact_url(source.export)}, found none: {e}; mend sources.export in the plan{hint}"
        ) from e


def unpacked(path: Path, target: Path, where: str, largest: int) -> Path:
    """The JSON inside a .gz or a .zip with one file, as LILA ships it, written to ``target``; another file as it is.

    Raises:
        ExportError: the archive is broken, or would unpack to more than ``largest`` bytes.
    """
    with path.open("rb") as f:
        begins = f.read(4)
    try:
        if begins[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                return _copied(packed, target, where, largest)
        if begins == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                names = [n for n in own_names(archive) if n.lower().endswith(".json")]
                if len(names) != 1:
                    raise ExportError(f"{where}: expected one .json file in the archive, found {len(names)}; name the right one, unpacked")
                with archive.open(names[0]) as packed:
                    return _copied(packed, target, where, largest)
    except (gzip.BadGzipFile, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise ExportError(f"{where}: the archive is broken ({e}); fetch it again") from e
    except (RuntimeError, NotImplementedError) as e:  # a password, or a compression that zipfile lacks
        raise ExportError(f"{where}: expected an archive that can be opened, found that {e}; name the .json file, unpacked") from e
    return path


def _copied(packed: IO[bytes] | gzip.GzipFile, target: Path, where: str, largest: int) -> Path:
    """``packed`` written to ``target``, as long as it is no bomb."""
    size = 0
    with full_disk_errors(target), target.open("wb") as f:
        while chunk := packed.read(_CHUNK):
            size += len(chunk)
            if size > largest:
                raise ExportError(
                    f"{where}: expected an archive that unpacks to at most {largest / 2**30:g} GiB, found more; unpack it by hand to use it"
                )
            f.write(chunk)
    return target


Batch = tuple[str, list[Any]]
"""A part of an export (images, annotations, categories; others do not count) and some of its records."""


def batches(path: Path, where: str) -> Iterator[Batch]:
    """The records of an export's lists in the file's order, strictly, with the memory of a few thousand.

    Raises:
        ExportError: it is not JSON, ends early, or lacks a part.
    """
    seen = set()
    try:
        with path.open("rb") as f:
            for part, rows in json_stream.batches(f):
                seen.add(part)
                yield part, rows
    except ValueError as e:
        with path.open("rb") as f:
            raise _no_json(where, e, f.read(24)) from e
    _check_parts(where, seen)


def parsed(data: bytes, where: str) -> dict[str, Any]:
    """The export's JSON, strictly and at once; for exports that are small by nature, such as Animl's windows.

    Raises:
        ExportError: it is not JSON, ends early, or lacks a part.
    """
    try:
        cct = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise _no_json(where, e, data[:24]) from e
    _check_parts(where, {p for p, rows in cct.items() if isinstance(rows, list)} if isinstance(cct, dict) else set())
    return dict(cct)


def _no_json(where: str, error: Exception, begins: bytes) -> ExportError:
    head = begins.decode("utf-8", "replace").strip()
    return ExportError(f"{where} is not JSON ({error}; it begins with {head!r}); export it again from Animl, it may have been cut off")


def _check_parts(where: str, seen: set[str]) -> None:
    lacking = [p for p in PARTS if p not in seen]
    if lacking:
        raise ExportError(
            f"{where} is not COCO for Camera Traps: expected the lists {', '.join(PARTS)}, found no {lacking[0]!r}; export it in the format 'coco'"
        )
