"""Read an export file: fetch it from a path, https or s3, unpack it up to a limit, and parse its JSON strictly."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError, redact_url
from animl_pipeline.steps.export import json_stream
from animl_pipeline.steps.export.recognise_other_formats import HEAD_BYTES, READ_FORMATS, recognise, recognise_json
from animl_pipeline.storage.atomic_files import disk_errors
from animl_pipeline.storage.read_remote_files import RemoteError, read_path_or_url

COCO_PARTS = ("images", "annotations", "categories")

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
            raise not_json(where, e, f.read(HEAD_BYTES)) from e
    _check_parts(where, seen)


def parse_coco(data: bytes, where: str) -> dict[str, Any]:
    """A whole COCO export, for those that are small by nature, such as Animl's windows.

    Raises:
        ExportError: as :func:`read_batches`.
    """
    try:
        coco = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise not_json(where, e, data[:HEAD_BYTES]) from e
    _check_parts(where, {part for part, rows in coco.items() if isinstance(rows, list)} if isinstance(coco, dict) else set())
    return dict(coco)


def not_json(where: str, error: Exception, head: bytes) -> ExportError:
    """The error for a file that is not JSON. It says what the file is, or shows how it begins: often as a web page."""
    if (other := recognise(head)) is not None:
        return ExportError(f"{where} is {other.name}, which is not read; {other.advice}", code="other_format")
    begin = head[:24].decode("utf-8", "replace").strip()
    return ExportError(f"{where} is not JSON ({error}; it begins with {begin!r}); export or fetch it again, it may be cut off", code="not_json")


def _check_parts(where: str, seen: set[str]) -> None:
    missing = [part for part in COCO_PARTS if part not in seen]
    if not missing:
        return
    if (other := recognise_json(seen)) is not None:
        raise ExportError(f"{where} is {other.name}, which is not read; {other.advice}", code="other_format")
    raise ExportError(
        f"{where} is not COCO for Camera Traps: expected the lists {', '.join(COCO_PARTS)}, found no {missing[0]!r}; "
        f"export it from Animl as 'coco', or convert it to {READ_FORMATS}",
        code="not_coco",
        missing=missing,
    )
