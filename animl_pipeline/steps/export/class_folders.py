"""Read images sorted into folders: the name of a folder is the label of the images in it, and perhaps their location.

The capture time is EXIF's DateTimeOriginal, for images on this machine. In a bucket only the names are listed; no image is
downloaded to look for its date.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError
from animl_pipeline.core.progress import track
from animl_pipeline.steps.export.problems import Problems
from animl_pipeline.steps.export.to_coco import REVIEWED, UNIT_SIZE, UNREAD_SUFFIXES, Converted, Row, converted_export, is_image, why_not_an_image
from animl_pipeline.steps.export.write_export_tables import ExportBuild
from animl_pipeline.storage.store import Store, batches, digest_of

DEFAULT_LAYOUT = "{label}"
EXIF_IFD, DATE_TIME_ORIGINAL, DATE_TIME_DIGITIZED, OFFSET_TIME_ORIGINAL = 0x8769, 0x9003, 0x9004, 0x9011
"""Tags of the Exif standard (CIPA DC-008)."""
EXIF_VERSION = 2
"""Raised when EXIF is read in another way, so that remembered dates are read again."""
BATCH = 2000
"""Images after which the dates read so far are remembered."""
_EXIF_ERRORS = (OSError, ValueError, SyntaxError, KeyError, TypeError, EOFError, struct.error)


class ListedFile(NamedTuple):
    """One file below the folder: its path, its size in bytes, and its capture time (ISO text, or empty)."""

    path: str
    size: int
    taken: str


class FolderLabels(NamedTuple):
    """What the folders of a path say; "" for what they do not say."""

    label: str
    location: str


def read_class_folders(source: SourceConfig, store: Store, settings: Settings) -> ExportBuild:
    """The export of images in folders.

    Raises:
        ExportUnreachableError: the bucket does not answer now.
        ExportError: ``not_found``: there is no such folder; ``no_images``: it holds none.
    """
    files = _list_bucket(source) if source.export.startswith("s3://") else list_folder(source, store, settings)
    if not any(is_image(f.path) for f in files):
        unread = next((f.path for f in files if Path(f.path).suffix.lower() in UNREAD_SUFFIXES), None)
        advice = why_not_an_image(unread) if unread else "fix sources.export in the plan"
        raise ExportError(
            f"source {source.name!r}: expected images in folders below {source.export}, found none among {len(files)} files; {advice}",
            code="no_images",
        )
    listing = json.dumps([f._asdict() for f in files], indent=0).encode()
    layout = source.layout or DEFAULT_LAYOUT
    return converted_export(
        source,
        originals={"listing.json": listing},
        digests={"listing": hashlib.sha256(listing).hexdigest()},
        config={"kind": "folders", "layout": layout},
        convert=lambda: _convert(files, layout),
    )


def _convert(files: list[ListedFile], layout: str) -> Converted:
    problems = Problems()
    kept: list[tuple[ListedFile, FolderLabels]] = []
    for file in files:
        said = read_layout(layout, file.path)
        if any("\ud800" <= c <= "\udfff" for c in file.path):
            problems.add("name_not_utf8", file.path, "no table can hold such a name; rename the file")
        elif file.path.endswith("/"):
            problems.add("link_to_a_folder", file.path, "such links are not followed; move the folder here, or make it a source of its own")
        elif not is_image(file.path):
            problems.add("not_an_image", file.path, why_not_an_image(file.path))
        elif said is None:
            problems.add("not_in_a_class_folder", file.path, f"its path is not as deep as {layout}")
        else:
            kept.append((file, said))
            if not file.taken:
                problems.add("no_capture_time", file.path, "EXIF holds no DateTimeOriginal")
    images = ({"id": f.path, "file_name": f.path, "location": said.location, "datetime": f.taken, **UNIT_SIZE} for f, said in kept)
    annotations: Iterator[Row] = ({"id": f.path, "image_id": f.path, "label": said.label, **REVIEWED} for f, said in kept)
    return Converted(images, annotations, problems, [])


def read_layout(layout: str, path: str) -> FolderLabels | None:
    """What the folders of a path mean, from the top; None where the path is not deep enough. Deeper folders mean nothing.

    >>> read_layout("{location}/{label}", "north gate/fox/2020/a.jpg")
    FolderLabels(label='fox', location='north gate')
    """
    levels, folders = layout.split("/"), PurePosixPath(path).parts[:-1]
    if len(folders) < len(levels):
        return None
    found = dict(zip(levels, folders, strict=False))
    return FolderLabels(found.get("{label}", "").strip(), found.get("{location}", "").strip())


def _list_bucket(source: SourceConfig) -> list[ListedFile]:
    """The files below s3://bucket/prefix, by name."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

    bucket, _, prefix = source.export.rstrip("/").removeprefix("s3://").partition("/")
    prefix = f"{prefix}/" if prefix else ""
    public = boto3.Session().get_credentials() is None
    client = boto3.client("s3", config=Config(signature_version=UNSIGNED) if public else None)
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [ListedFile(o["Key"].removeprefix(prefix), o["Size"], "") for page in pages for o in page.get("Contents", ())]
    except (ClientError, BotoCoreError) as e:
        status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(e, ClientError) else 0
        unreachable = isinstance(e, (ConnectionError, HTTPClientError)) or status == 429 or status >= 500
        kind = ExportUnreachableError if unreachable else ExportError
        line = f"source {source.name!r}: expected a bucket that can be listed at {source.export}: {e}; fix sources.export in the plan"
        raise kind(line, code="not_found") from e
    return sorted(f for f in found if not f.path.endswith("/"))


def list_folder(source: SourceConfig, store: Store, settings: Settings) -> list[ListedFile]:
    """The files below a folder with their dates. An image that has not changed since the last time is not opened again."""
    if "://" in source.export:
        scheme = source.export.partition(":")[0]
        raise ExportError(
            f"source {source.name!r}: folders cannot be listed over {scheme}; give a folder on this machine or s3://bucket/prefix",
            code="not_listable",
        )
    base = settings.data_path(source.export)
    if not base.is_dir():
        raise ExportError(
            f"source {source.name!r}: expected a folder of images at {base}, found none; fix sources.export in the plan "
            "(relative paths start at ANIML_DATA)",
            code="not_found",
        )
    found = sorted(_walk(base))
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # damaged EXIF: the image has no date, which is counted
    index = f"taken/{digest_of([str(base), EXIF_VERSION])[:16]}"
    known = store.read_index(index)
    taken = {path: str(known[path]["taken"]) for path, stamp, _ in found if known.get(path, {}).get("stamp") == stamp}
    todo = [(path, stamp) for path, stamp, _ in found if path not in taken and is_image(path)]
    with track(f"dates of {source.name}", len(found), len(found) - len(todo)) as step:
        for batch in batches(todo, BATCH):
            new = {path: {"stamp": stamp, "taken": exif_capture_time(base / path)} for path, stamp in batch}
            store.add_to_index(index, new)
            taken |= {path: str(record["taken"]) for path, record in new.items()}
            step(len(batch))
    return [ListedFile(path, size, taken.get(path, "")) for path, _, size in found]


def _walk(base: Path) -> Iterator[tuple[str, str, int]]:
    """The files below ``base``: path, a stamp that changes with the file, and size.

    Links to folders are not followed, because they may leave ``base``; they are given as a path that ends with "/".
    """
    for folder, folders, names in os.walk(base, onerror=_raise_unreadable):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for link in (Path(folder) / f for f in folders if os.path.islink(Path(folder) / f)):  # noqa: PTH114 - never raises
            yield f"{link.relative_to(base).as_posix()}/", "", 0
        for path in (Path(folder) / name for name in names if not name.startswith(".")):
            relative = path.relative_to(base).as_posix()
            try:
                status = path.stat()
            except OSError:  # a broken link, or a file that has just gone: the images step counts it
                yield relative, "", 0
                continue
            if stat.S_ISREG(status.st_mode):  # reading a pipe would never end
                yield relative, f"{status.st_size}-{status.st_mtime_ns}", status.st_size


def _raise_unreadable(error: OSError) -> None:
    raise ExportError(
        f"expected folders that can be listed, found {error.filename}: {error.strerror}; make it readable, or name another folder", code="unreadable"
    )


def exif_capture_time(path: Path) -> str:
    """The capture time in an image's EXIF as ISO text, with a zone where EXIF has one; "" where there is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            exif: dict[int, Any] = dict(image.getexif().get_ifd(EXIF_IFD))
    except (*_EXIF_ERRORS, Image.DecompressionBombError):
        return ""  # the images step counts files that are not images
    for tag in (DATE_TIME_ORIGINAL, DATE_TIME_DIGITIZED):
        said = re.fullmatch(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?\0*", str(exif.get(tag, "")).strip(), re.ASCII)
        taken = f"{said[1]}-{said[2]}-{said[3]}T{said[4]}" if said else ""
        if _is_iso_time(taken):
            zone = re.fullmatch(r"[+-]\d\d:\d\d", str(exif.get(OFFSET_TIME_ORIGINAL, "")).strip("\0 "), re.ASCII)
            return f"{taken}{zone[0]}" if zone and _is_iso_time(f"{taken}{zone[0]}") else taken
    return ""


def _is_iso_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:  # such as the zeros of a camera whose clock was never set
        return False
    return True
