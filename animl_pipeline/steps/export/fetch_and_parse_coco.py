"""Read an export file: fetch it from a path, https or s3, unpack it up to a limit, and parse its JSON strictly.

Archives are unpacked up to a limit, because a few megabytes can hold a disk full of zeros.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError, redact_url
from animl_pipeline.steps.export import json_stream
from animl_pipeline.storage.atomic_files import disk_errors, full_disk_errors
from animl_pipeline.storage.remote_files import RemoteError, read_path_or_url

COCO_PARTS = ("images", "annotations", "categories")
MAX_JSON = 16 << 30
"""Bytes that an archive with one JSON file may unpack to, on disk: 16 GiB, some fifteen million images."""
MAX_IN_MEMORY = 4 << 30
"""Bytes that a table in an archive may unpack to, in memory."""
MAX_RATIO = 250
"""How many times its packed size a table may grow to: CSV grows 10 to 50 times, zeros a thousand times."""
RATIO_FREE = 64 << 20
"""Bytes up to which the ratio does not count."""
_CHUNK = 1 << 20

Batch = tuple[str, list[Any]]
"""A list of the export (images, annotations, categories; others are ignored) and some of its records."""


def export_error(source: SourceConfig, expected: str, error: RemoteError) -> ExportError:
    """The error for an export that did not arrive; it is retryable where another try may help."""
    kind = ExportUnreachableError if error.retryable else ExportError
    hint = "" if "://" in source.export else " (relative paths start at ANIML_DATA)"
    return kind(f"source {source.name!r}: expected {expected}, found none: {error}; fix sources.export in the plan{hint}", code="not_found")


@contextmanager
def fetch_export(source: SourceConfig, settings: Settings, work: Path) -> Iterator[Path]:
    """The file that a source names, unchanged, as a local path.

    A file on this machine is used where it is. Others are copied below ``work`` for the time of the block.

    Raises:
        ExportUnreachableError: its host does not answer now.
        ExportError: ``not_found``.
    """
    path = None if "://" in source.export else settings.data_path(source.export)
    if path is not None and os.path.isfile(path) and os.access(path, os.R_OK):  # noqa: PTH113 - Path.is_file raises for names that are too long
        yield path
        return
    with scratch_folder(work) as folder:
        path = folder / "fetched"
        try:
            data = read_path_or_url(source.export, settings)
        except RemoteError as e:
            raise export_error(source, f"an export at {redact_url(source.export)}", e) from e
        with disk_errors(path):
            path.write_bytes(data)
        yield path


@contextmanager
def scratch_folder(work: Path) -> Iterator[Path]:
    """A new folder below ``work`` for the time of the block."""
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=work, prefix="export-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


# -- archives --------------------------------------------------------------------------------------------------------


def unpack_json(path: Path, target: Path, where: str, limit: int = MAX_JSON) -> Path:
    """The JSON file in a .gz or a one-file .zip (as LILA ships it), written to ``target``; ``path`` itself if it is not packed.

    Raises:
        ExportError: ``bad_archive``, or ``archive_too_large`` for more than ``limit`` bytes.
    """
    with path.open("rb") as f:
        head = f.read(4)
    if head[:2] == b"\x1f\x8b":
        with archive_errors(where), gzip.open(path) as packed:
            return _write_chunks(cast("IO[bytes]", packed), target, where, limit)
    if head == b"PK\x03\x04":
        with archive_errors(where), zipfile.ZipFile(path) as archive:
            names = [name for name in zip_names(archive) if name.lower().endswith(".json")]
            if len(names) != 1:
                raise ExportError(f"{where}: expected one .json file in the archive, found {len(names)}; unpack it and name the right file")
            with archive.open(names[0]) as packed:
                return _write_chunks(packed, target, where, limit)
    return path


def gunzip(data: bytes, where: str) -> bytes:
    """The content of a gzip file.

    Raises:
        ExportError: ``bad_archive`` or ``archive_too_large``.
    """
    with archive_errors(where), gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        return b"".join(_chunks(cast("IO[bytes]", packed), where, _memory_limit(len(data))))


def read_zip_member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """The content of one file in a zip.

    Raises:
        ExportError: ``not_found``, ``bad_archive`` or ``archive_too_large``.
    """
    try:
        info = archive.getinfo(name)
    except KeyError as e:
        found = ", ".join(archive.namelist()[:8]) or "nothing"
        raise ExportError(f"{where}: expected {name!r} in the archive, found {found}", code="not_found") from e
    with archive_errors(where), archive.open(info) as packed:
        return b"".join(_chunks(packed, f"{where}, {name}", _memory_limit(info.compress_size)))


def zip_names(archive: zipfile.ZipFile) -> list[str]:
    """The names in a zip, without the files that macOS adds beside each file."""
    return [name for name in archive.namelist() if not name.startswith("__MACOSX/")]


@contextmanager
def archive_errors(where: str) -> Iterator[None]:
    """Turn the many errors of broken and encrypted archives into one line.

    Raises:
        ExportError: ``bad_archive``.
    """
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise ExportError(f"{where}: the archive is broken ({e}); fetch it again", code="bad_archive") from e
    except (RuntimeError, NotImplementedError) as e:  # a password, or a compression that zipfile lacks
        raise ExportError(f"{where}: the archive cannot be opened ({e}); unpack it and name the file inside", code="bad_archive") from e


def _memory_limit(packed: int) -> int:
    return min(MAX_IN_MEMORY, max(RATIO_FREE, MAX_RATIO * packed))


def _write_chunks(packed: IO[bytes], target: Path, where: str, limit: int) -> Path:
    with full_disk_errors(target), target.open("wb") as f:
        for chunk in _chunks(packed, where, limit):
            f.write(chunk)
    return target


def _chunks(packed: IO[bytes], where: str, limit: int) -> Iterator[bytes]:
    """The unpacked bytes, up to the limit."""
    size = 0
    while chunk := packed.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise ExportError(
                f"{where}: expected an archive of at most {limit:,} bytes unpacked, found more; if you trust it, unpack it and name the file inside",
                code="archive_too_large",
            )
        yield chunk


# -- JSON ------------------------------------------------------------------------------------------------------------


def read_batches(path: Path, where: str) -> Iterator[Batch]:
    """The records of a COCO export's lists in the file's order. Memory holds a few thousand records at a time.

    Raises:
        ExportError: ``not_json`` (or it ends early), or ``not_coco``: a list is missing.
    """
    seen = set()
    try:
        with path.open("rb") as f:
            for part, rows in json_stream.read_lists(f):
                seen.add(part)
                yield part, rows
    except ValueError as e:
        with path.open("rb") as f:
            raise not_json(where, e, f.read(24)) from e
    _check_parts(where, seen)


def parse_coco(data: bytes, where: str) -> dict[str, Any]:
    """A whole COCO export, for those that are small by nature, such as Animl's windows.

    Raises:
        ExportError: as :func:`read_batches`.
    """
    try:
        coco = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise not_json(where, e, data[:24]) from e
    _check_parts(where, {part for part, rows in coco.items() if isinstance(rows, list)} if isinstance(coco, dict) else set())
    return dict(coco)


def not_json(where: str, error: Exception, head: bytes) -> ExportError:
    """The error for a file that is not JSON. It shows how the file begins: often as a web page."""
    begin = head.decode("utf-8", "replace").strip()
    return ExportError(f"{where} is not JSON ({error}; it begins with {begin!r}); export or fetch it again, it may be cut off", code="not_json")


def _check_parts(where: str, seen: set[str]) -> None:
    missing = [part for part in COCO_PARTS if part not in seen]
    if missing:
        raise ExportError(
            f"{where} is not COCO for Camera Traps: expected the lists {', '.join(COCO_PARTS)}, found no {missing[0]!r}; export it as 'coco'",
            code="not_coco",
            missing=missing,
        )
