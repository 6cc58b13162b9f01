"""Pictures in folders as an export: a folder's name is the label of what lies in it, and perhaps the place.

Taken is what EXIF says (DateTimeOriginal), for pictures on this machine: from a bucket only names are listed, and no picture is
fetched to look into it.
"""

from __future__ import annotations

import hashlib
import json
import logging
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
from animl_pipeline.core.errors import ExportError
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.export.columns import text
from animl_pipeline.steps.export.problems import Problem
from animl_pipeline.steps.export.to_coco import REVIEWED, Converted, Row, is_image, make_converted
from animl_pipeline.storage.step_cache import Store, batches, digest_of

log = logging.getLogger(__name__)

LABEL_ONLY = "{label}"
EXIF_IFD, ORIGINAL, DIGITIZED, ORIGINAL_OFFSET = 0x8769, 0x9003, 0x9004, 0x9011
READ_AS = 2
"""Raised where EXIF is read in another way, so that what an earlier version remembered does not count."""
BATCH = 2000
"""Pictures after which what EXIF said is remembered."""


class Listed(NamedTuple):
    """One file below the folder: its path, its size, and when it was taken (ISO text, or empty)."""

    path: str
    size: int
    taken: str


class Meaning(NamedTuple):
    """What the folders of a path mean; empty text where they do not say."""

    label: str
    location: str


def export_folders(source: SourceConfig, store: Store, settings: Settings) -> Artifact:
    """The export step of pictures in folders; see :func:`animl_pipeline.steps.export.export_annotations`.

    Raises:
        ExportError: there is no such folder, or no picture in it.
    """
    files = _in_bucket(source) if source.export.startswith("s3://") else _on_disk(source, store, settings)
    if not any(is_image(f.path) for f in files):
        raise ExportError(
            f"source {source.name!r}: expected pictures in folders below {source.export}, found none among {len(files)} files; mend sources.export"
        )
    listing = json.dumps([f._asdict() for f in files], indent=0).encode()
    layout = source.layout or LABEL_ONLY
    return make_converted(
        source,
        store,
        originals={"listing.json": listing},
        digests={"listing": hashlib.sha256(listing).hexdigest()},
        config={"kind": "folders", "layout": layout},
        convert=lambda: _converted(files, layout),
    )


def _converted(files: list[Listed], layout: str) -> Converted:
    problems: list[Problem] = []
    kept: list[tuple[Listed, Meaning]] = []
    for file in files:
        meaning = read_layout(layout, file.path)
        if any("\ud800" <= c <= "\udfff" for c in file.path):
            problems.append(("name_not_utf8", text(file.path)[:160], "no table can hold such a name; rename the file"))
        elif file.path.endswith("/"):
            problems.append(("link_to_a_folder", file.path[:160], "such links are not followed; move the folder here, or name it as a source"))
        elif not is_image(file.path):
            problems.append(("not_an_image", file.path[:160], "only pictures are used; videos are not"))
        elif meaning is None:
            problems.append(("not_in_a_class_folder", file.path[:160], f"its path does not reach as deep as {layout}"))
        else:
            kept.append((file, meaning))
            if not file.taken:
                problems.append(("no_capture_time", file.path[:160], "EXIF holds no DateTimeOriginal"))
    images = ({"id": f.path, "file_name": f.path, "location": m.location, "datetime": f.taken, "width": 1, "height": 1} for f, m in kept)
    return Converted(images, _labels(kept), problems, [])


def _labels(kept: list[tuple[Listed, Meaning]]) -> Iterator[Row]:
    for file, meaning in kept:
        yield {"id": file.path, "image_id": file.path, "name": meaning.label, **REVIEWED}


def read_layout(layout: str, path: str) -> Meaning | None:
    """What a path's folders mean, from the top, or None where it is not deep enough. Deeper folders mean nothing.

    >>> read_layout("{location}/{label}", "north gate/fox/2020/a.jpg")
    Meaning(label='fox', place='north gate')
    """
    parts, folders = layout.split("/"), PurePosixPath(path).parts[:-1]
    if len(folders) < len(parts):
        return None
    found = dict(zip(parts, folders, strict=False))
    return Meaning(found.get("{label}", "").strip(), found.get("{location}", "").strip())


def _in_bucket(source: SourceConfig) -> list[Listed]:
    """What lies below s3://bucket/prefix, by name."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = source.export.rstrip("/").removeprefix("s3://").partition("/")
    prefix = f"{prefix}/" if prefix else ""
    public = boto3.Session().get_credentials() is None
    client = boto3.client("s3", config=Config(signature_version=UNSIGNED) if public else None)
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [Listed(o["Key"].removeprefix(prefix), o["Size"], "") for page in pages for o in page.get("Contents", ())]
    except (ClientError, BotoCoreError) as e:
        raise ExportError(f"source {source.name!r}: expected a bucket that can be listed at {source.export}: {e}; mend sources.export") from e
    return sorted(f for f in found if not f.path.endswith("/"))


def _on_disk(source: SourceConfig, store: Store, settings: Settings) -> list[Listed]:
    """What lies below a folder, with what EXIF says; a picture that is unchanged is not opened again."""
    if "://" in source.export:
        raise ExportError(
            f"source {source.name!r}: folders cannot be listed over {source.export.partition(':')[0]}; give a folder on this machine or s3://bucket/prefix"
        )
    base = settings.data_path(source.export)
    if not base.is_dir():
        raise ExportError(
            f"source {source.name!r}: expected a folder of pictures at {base}, found none; mend sources.export in the plan "
            "(relative paths start at ANIML_DATA)"
        )
    found = sorted(_walked(base))
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # EXIF that is damaged: the picture has no date, which is counted
    memory = f"taken/{digest_of([str(base), READ_AS])[:16]}"
    known = store.read_index(memory)
    taken = {path: str(known[path]["taken"]) for path, stamp, _ in found if known.get(path, {}).get("stamp") == stamp}
    todo = [(path, stamp) for path, stamp, _ in found if path not in taken and is_image(path)]
    with track(f"dates of {source.name}", len(found), len(found) - len(todo)) as step:
        for batch in batches(todo, BATCH):
            new = {path: {"stamp": stamp, "taken": exif_taken(base / path)} for path, stamp in batch}
            store.add_to_index(memory, new)
            taken |= {path: str(record["taken"]) for path, record in new.items()}
            step(len(batch))
    return [Listed(path, size, taken.get(path, "")) for path, _, size in found]


def _walked(base: Path) -> Iterator[tuple[str, str, int]]:
    """Path below ``base``, a stamp that changes with the file, and size. Links to folders are not followed: they may leave it."""
    for folder, folders, names in os.walk(base, onerror=_refuse):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for link in (Path(folder) / f for f in folders if os.path.islink(Path(folder) / f)):  # noqa: PTH114 - never raises
            yield f"{link.relative_to(base).as_posix()}/", "", 0
        for path in (Path(folder) / name for name in names if not name.startswith(".")):
            within = path.relative_to(base).as_posix()
            try:
                status = path.stat()
            except OSError:  # a link to nowhere or in a circle, or gone meanwhile: counted where pictures are fetched
                yield within, "", 0
                continue
            if stat.S_ISREG(status.st_mode):  # a pipe would never end
                yield within, f"{status.st_size}-{status.st_mtime_ns}", status.st_size


def _refuse(fault: OSError) -> None:
    raise ExportError(
        f"expected folders of pictures that can be listed, found {fault.filename}: {fault.strerror}; let it be read, or name another folder"
    )


def exif_taken(path: Path) -> str:
    """When a picture was taken, as EXIF says: ISO text, with a zone where EXIF has one, or empty. Only its head is read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            exif: dict[int, Any] = dict(image.getexif().get_ifd(EXIF_IFD))
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, EOFError, struct.error, Image.DecompressionBombError):
        return ""  # a picture that does not open is counted where pictures are fetched
    for tag in (ORIGINAL, DIGITIZED):
        said = re.fullmatch(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?\0*", str(exif.get(tag, "")).strip(), re.ASCII)
        taken = f"{said[1]}-{said[2]}-{said[3]}T{said[4]}" if said else ""
        if _is_moment(taken):
            zone = re.fullmatch(r"[+-]\d\d:\d\d", str(exif.get(ORIGINAL_OFFSET, "")).strip("\0 "), re.ASCII)
            return f"{taken}{zone[0]}" if zone and _is_moment(f"{taken}{zone[0]}") else taken
    return ""


def _is_moment(taken: str) -> bool:
    try:
        datetime.fromisoformat(taken)
    except ValueError:  # such as the zeros of a camera whose clock was never set
        return False
    return True
