"""Find the exports in a folder that is given instead of them, and guess where their images are: beside them, or in Animl's bucket."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings

HEAD_BYTES = 1 << 16
MAX_DEPTH = 2
"""Folders below the given one in which exports are looked for."""
_COCO_IMAGE = re.compile(rb'"file_name"\s*:')
"""A key of COCO for Camera Traps' images; those of MegaDetector's results have "file" instead."""
SAMPLE_SIZE = 25
"""Images that are looked for in each folder."""
ANIML_BUCKET = "s3://animl-images-serving-prod"


def find_exports_inside(export: str, settings: Settings) -> list[str]:
    """The files of COCO for Camera Traps in a local folder, such as <folder>/*/cct.json; else the export itself.

    A folder with a folder of images for each class and a Camtrap DP have none, so they come back unchanged.

    ``export``: as a person gives it: a path, an address, or animl://<project>.
    """
    if "://" in export:
        return [export]
    given = Path(export) if Path(export).is_dir() else settings.data_path(export)
    if not given.is_dir() or (given / "datapackage.json").exists():
        return [export]
    patterns = ["/".join(["*"] * depth + ["*.json"]) for depth in range(MAX_DEPTH + 1)]
    found = sorted(str(file) for pattern in patterns for file in given.glob(pattern) if _is_coco(file))
    return found or [export]


def _is_coco(file: Path) -> bool:
    try:
        with file.open("rb") as f:
            head = f.read(HEAD_BYTES)
    except OSError:
        return False
    return head.lstrip()[:1] == b"{" and _COCO_IMAGE.search(head) is not None


class ImageFolder(NamedTuple):
    """A source's ``images`` and ``path_field``, and what is uncertain about them ("" if nothing is)."""

    images: str
    path_field: str
    doubt: str


def find_images(source: SourceConfig, images: pd.DataFrame, head: bytes, settings: Settings) -> ImageFolder:
    """Where a source's images are, if the user does not say so.

    ``head``: the first bytes of its export.json.
    """
    if source.project() is not None:
        return ImageFolder(ANIML_BUCKET, "serving_bucket_key", "this is the bucket of Animl's production stage; other stages have their own")
    paths = [str(p) for p in images["path"].iloc[:: max(1, len(images) // SAMPLE_SIZE)]][:SAMPLE_SIZE]
    remote = "://" in source.export
    if not remote:
        folder = Path(source.export).parent
        for candidate in (folder, folder / "images", folder / Path(source.export).stem.partition(".")[0], Path("images")):
            if any(settings.data_path(str(candidate / p)).is_file() for p in paths):
                return ImageFolder(candidate.as_posix(), source.path_field, "")
    if b'"serving_bucket_key"' in head:
        return ImageFolder(ANIML_BUCKET, "serving_bucket_key", "an export of Animl; its images may be in the bucket of another stage")
    guess = f"{source.export.rpartition('/')[0] or '.'}/images" if remote else (Path(source.export).parent / "images").as_posix()
    return ImageFolder(guess, source.path_field, f"no image was found ({paths[0] if paths else 'the export names none'} …); enter their folder here")
