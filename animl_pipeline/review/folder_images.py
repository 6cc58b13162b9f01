"""The images of a folder on this machine: what they are called, where and when they were taken. They are read in place, never copied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ImagesError
from animl_pipeline.steps.export.class_folders import list_folder
from animl_pipeline.steps.export.to_coco import is_image
from animl_pipeline.storage.store import Store

FOLDER = "folder"
"""The name of the source whose images are those of a folder."""
IMAGE_COLUMNS = ["source", "image_id", "path", "blob", "location", "taken", "sequence"]
"""What is known of an image: ``blob`` is the sha256 of its file, "" where it cannot be read."""


class FolderImages(NamedTuple):
    """Images by the sha256 of their files, as a store gives them."""

    paths: Mapping[str, Path]

    def blob(self, sha256: str) -> bytes:
        """The bytes of an image.

        Raises:
            ImagesError: ``changed``: the file changed since it was listed.
        """
        data = self.paths[sha256].read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ImagesError(f"{self.paths[sha256]} changed while it was read; run again when it is complete", code="changed")
        return data


def read_folder(folder: Path, store: Store, settings: Settings) -> tuple[pd.DataFrame, FolderImages]:
    """The images below a folder, by path, with the columns ``IMAGE_COLUMNS``; and their bytes.

    The location of an image is the folder that it is in, its time is EXIF's.

    Raises:
        ImagesError: ``no_images``: there is none.
        ExportError: there is no such folder, or it cannot be listed.
    """
    files = [
        f
        for f in list_folder(SourceConfig(name=FOLDER, export=str(folder.resolve()), images=str(folder.resolve()), kind="folders"), store, settings)
        if is_image(f.path)
    ]
    if not files:
        raise ImagesError(f"expected images below {folder}, found none; name a folder of JPEG or PNG files", code="no_images")
    with ThreadPoolExecutor(settings.workers) as pool:
        digests = list(pool.map(lambda f: _digest(folder / f.path), files))
    rows = [
        (FOLDER, f.path, f.path, digest, "/".join(PurePosixPath(f.path).parts[:-1]), f.taken, "") for f, digest in zip(files, digests, strict=True)
    ]
    paths = {digest: folder / f.path for f, digest in zip(files, digests, strict=True) if digest}
    return pd.DataFrame(rows, columns=IMAGE_COLUMNS), FolderImages(paths)


def _digest(path: Path) -> str:
    """The sha256 of a file; "" where it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return ""
