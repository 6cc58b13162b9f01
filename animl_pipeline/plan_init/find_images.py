"""Where the pictures of an export probably lie: looked for beside it, or where its platform keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings

SAMPLE = 25
"""Pictures that are looked for."""
ANIML_BUCKET = "s3://animl-images-serving-prod"


class Found(NamedTuple):
    """A place for ``images``, the ``key`` that fits it, and what is not sure about it (empty where it is)."""

    images: str
    key: str
    unsure: str


def images_of(source: SourceConfig, images: pd.DataFrame, head: bytes, settings: Settings) -> Found:
    """Where a source's pictures lie, when nobody said so.

    Args:
        source: the source; its own ``images`` is the last guess.
        images: its images.parquet.
        head: the first bytes of its export.json.
        settings: where relative paths start.
    """
    if source.project() is not None:
        return Found(ANIML_BUCKET, "serving_bucket_key", "the bucket of Animl's production stage; other stages have their own")
    paths = [str(p) for p in images["path"].iloc[:: max(1, len(images) // SAMPLE)]][:SAMPLE]
    if "://" not in source.export:
        beside = Path(source.export).parent
        for folder in (beside, beside / "images", beside / Path(source.export).stem.partition(".")[0], Path("images")):
            if any(settings.data_path(str(folder / p)).is_file() for p in paths):
                return Found(folder.as_posix(), source.key, "")
    if b'"serving_bucket_key"' in head:
        return Found(
            ANIML_BUCKET, "serving_bucket_key", "an export of Animl, whose production stage keeps its pictures there; the stage may be another"
        )
    guess = f"{source.export.rpartition('/')[0] or '.'}/images" if "://" in source.export else (Path(source.export).parent / "images").as_posix()
    return Found(guess, source.key, f"the pictures were not found ({paths[0] if paths else 'none is named'} …): say where they lie")
