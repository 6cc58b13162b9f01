"""What comes packed is unpacked up to a limit: an archive of a few megabytes can hold a disk full of zeros."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from animl_pipeline.core.errors import ExportError

MAX_UNPACKED = 4 << 30
"""Bytes that one archive may unpack to: LILA's largest metadata (7 million images) have about half of it."""
MAX_RATIO = 250
"""How many times its packed size a file may grow to: JSON and CSV grow 10 to 50 times, zeros a thousand times."""
ALWAYS = 64 << 20
"""Bytes up to which the ratio does not matter."""
CHUNK = 1 << 20


def limited(stream: IO[bytes], packed: int, where: str) -> Iterator[bytes]:
    """The bytes of a stream that unpacks ``packed`` bytes, in chunks, up to the limit.

    Raises:
        ExportError: there are more; says the limit and the way around it.
    """
    limit = min(MAX_UNPACKED, max(ALWAYS, MAX_RATIO * packed))
    done = 0
    while chunk := stream.read(CHUNK):
        done += len(chunk)
        if done > limit:
            raise ExportError(
                f"{where}: expected an archive that unpacks to at most {limit:,} bytes ({MAX_RATIO} times its {packed:,}, and never more than "
                f"{MAX_UNPACKED:,}), found more; if you trust it, unpack it by hand and name the file inside"
            )
        yield chunk


def gunzipped(data: bytes, where: str) -> bytes:
    """What a gzip file holds.

    Raises:
        ExportError: it is broken, or too large.
    """
    with faults_named(where), gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        return b"".join(limited(cast("IO[bytes]", stream), len(data), where))


def member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    """One file of an archive.

    Raises:
        ExportError: it is not there, broken, or too large.
    """
    try:
        info = archive.getinfo(name)
    except KeyError as e:
        raise ExportError(f"{where}: expected {name!r} in the archive, found {', '.join(archive.namelist()[:8]) or 'nothing'}") from e
    with faults_named(where), archive.open(info) as stream:
        return b"".join(limited(stream, info.compress_size, f"{where}, {name}"))


def own_names(archive: zipfile.ZipFile) -> list[str]:
    """The names in an archive, without what macOS packs beside each file."""
    return [n for n in archive.namelist() if not n.startswith("__MACOSX/")]


@contextmanager
def faults_named(where: str) -> Iterator[None]:
    """Say what an archive's fault is in one line.

    Raises:
        ExportError: it cannot be opened.
    """
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise ExportError(f"{where}: the archive is broken ({e}); fetch it again") from e
    except (RuntimeError, NotImplementedError) as e:  # a password, or a compression that zipfile lacks
        raise ExportError(f"{where}: expected an archive that can be opened, found that {e}; name the file inside, unpacked") from e
