"""Guess where the images of an export are: beside it, or in Animl's bucket."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings

SAMPLE_SIZE = 25
"""Images that are looked for in each folder."""
ANIML_BUCKET = "s3://animl-images-serving-prod"


class ImageFolder(NamedTuple):
    """A source's ``images`` and ``path_field``, and what is uncertain about them ("" if nothing is)."""

    images: str
    path_field: str
    doubt: str


def find_images(source: SourceConfig, images: pd.DataFrame, head: bytes, settings: Settings) -> ImageFolder:
    """Where a source's images are, if the user does not say so.

    Args:
        source: the source.
        images: its images.parquet.
        head: the first bytes of its export.json.
        settings: where relative paths start.
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
