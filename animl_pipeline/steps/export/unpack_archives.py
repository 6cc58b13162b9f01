"""Unpack gzip and zip files within limits: an archive of a few megabytes can hold a full disk of zeros."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from animl_pipeline.core.errors import ExportError
from animl_pipeline.storage.atomic_files import full_disk_errors
from animl_pipeline.storage.bounded_http_body import unpacked_limit

MAX_IN_MEMORY = 4 << 30
"""Bytes that a table in an archive may unpack to, in memory."""
_CHUNK = 1 << 20


def unpack_json(path: Path, target: Path, where: str, limit: int) -> Path:
    """The JSON file in a .gz or a one-file .zip (as LILA ships it), written to ``target``; ``path`` itself if it is not packed.

    Raises:
        ExportError: ``bad_archive``, or ``archive_too_large`` for more than ``limit`` bytes, or than the ratio of ``unpacked_limit`` allows.
    """
    with path.open("rb") as f:
        head = f.read(4)
    if head[:2] == b"\x1f\x8b":
        with archive_errors(where), gzip.open(path) as packed:
            return _write_chunks(cast("IO[bytes]", packed), target, where, unpacked_limit(path.stat().st_size, limit))
    if head == b"PK\x03\x04":
        with archive_errors(where), zipfile.ZipFile(path) as archive:
            names = [name for name in zip_names(archive) if name.lower().endswith(".json")]
            if len(names) != 1:
                raise ExportError(f"{where}: expected one .json file in the archive, found {len(names)}; unpack it and name the right file")
            with archive.open(names[0]) as packed:
                return _write_chunks(packed, target, where, unpacked_limit(archive.getinfo(names[0]).compress_size, limit))
    return path


def gunzip(data: bytes, where: str) -> bytes:
    """The content of a gzip file.

    Raises:
        ExportError: ``bad_archive`` or ``archive_too_large``.
    """
    with archive_errors(where), gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        return b"".join(_chunks(cast("IO[bytes]", packed), where, unpacked_limit(len(data), MAX_IN_MEMORY)))


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
        return b"".join(_chunks(packed, f"{where}, {name}", unpacked_limit(info.compress_size, MAX_IN_MEMORY)))


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
                f"{where}: expected an archive of at most {limit:,} bytes unpacked, found more; if you trust it, unpack it and name the file inside"
                " (ANIML_MAX_UNPACKED_MB raises the limit, up to a ratio that real exports do not reach)",
                code="archive_too_large",
            )
        yield chunk
