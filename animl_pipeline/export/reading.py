"""An export as a file: read from a path, an https or an s3 address, unpacked, parsed strictly."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
import zlib
from typing import Any

from animl_pipeline.errors import ExportError
from animl_pipeline.plan import SourcePlan
from animl_pipeline.remote import RemoteError, read_address
from animl_pipeline.settings import Settings


def read(source: SourcePlan, settings: Settings) -> bytes:
    """The JSON that a source names.

    Raises:
        ExportError: it is not there, or its archive is broken.
    """
    return _unpacked(_bytes(source, settings), bare(source.export))


def _bytes(source: SourcePlan, settings: Settings) -> bytes:
    try:
        return read_address(source.export, settings)
    except RemoteError as e:
        hint = "" if "://" in source.export else " (relative paths start at ANIML_DATA)"
        raise ExportError(
            f"source {source.name!r}: expected an export at {bare(source.export)}, found none: {e}; mend sources.export in the plan{hint}"
        ) from e


def _unpacked(data: bytes, where: str) -> bytes:
    """The JSON inside a .gz or a .zip with one file, as LILA ships it; other bytes as they are."""
    try:
        if data[:2] == b"\x1f\x8b":
            return gzip.decompress(data)
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = [n for n in archive.namelist() if n.endswith(".json")]
                if len(names) != 1:
                    raise ExportError(f"{where}: expected one .json file in the archive, found {len(names)}; name the right one, unpacked")
                return archive.read(names[0])
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise ExportError(f"{where}: the archive is broken ({e}); fetch it again") from e
    except (RuntimeError, NotImplementedError) as e:  # a password, or a compression that zipfile lacks
        raise ExportError(f"{where}: expected an archive that can be opened, found that {e}; name the .json file, unpacked") from e
    return data


def parsed(data: bytes, where: str) -> dict[str, Any]:
    """The export's JSON, strictly.

    Raises:
        ExportError: it is not JSON, ends early, or lacks a part.
    """
    try:
        cct = json.loads(data)
    except (ValueError, RecursionError) as e:
        begins = data[:24].decode("utf-8", "replace").strip()
        raise ExportError(f"{where} is not JSON ({e}; it begins with {begins!r}); export it again from Animl, it may have been cut off") from e
    parts = ("images", "annotations", "categories")
    lacking = [p for p in parts if not isinstance(cct, dict) or not isinstance(cct.get(p), list)]
    if lacking:
        raise ExportError(
            f"{where} is not COCO for Camera Traps: expected the lists {', '.join(parts)}, found no {lacking[0]!r}; export it in the format 'coco'"
        )
    return dict(cct)


def bare(address: str) -> str:
    """An address without its query, which may hold a signature."""
    return address.partition("?")[0] if "://" in address else address
