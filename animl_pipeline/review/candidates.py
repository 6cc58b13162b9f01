"""Unreviewed images: those of a plan's exports. Only a sample of them is downloaded and looked at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import AnimlExportConfig, Plan, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.capture_times import parse_seconds
from animl_pipeline.core.errors import ImagesError
from animl_pipeline.core.sample_limit_and_false_box_types import spread_over_locations
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES
from animl_pipeline.inference.sequence_outcomes import number_sequences
from animl_pipeline.review.choose_images import draw_random
from animl_pipeline.review.folder_images import IMAGE_COLUMNS
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import open_image_host
from animl_pipeline.steps.images.step import download_all
from animl_pipeline.storage.store import Store

UNKNOWN_LOCATION = "?"


class Pool(NamedTuple):
    """A sample of unreviewed images, with ``IMAGE_COLUMNS``: at most one image of a sequence, named by ``sequence``.

    Attributes:
        images: the images; ``blob`` is "" where the image could not be downloaded.
        random: bool [n], whether the image is of the random part.
        unreviewed: how many images have no review.
        sequences: in how many sequences.
    """

    images: pd.DataFrame
    random: NDArray[np.bool_]
    unreviewed: int
    sequences: int


def sample_pool(images: pd.DataFrame, random: int, most: int, seed: int, gap_s: float) -> Pool:
    """Sample images with ``IMAGE_COLUMNS``: a random part of all sequences, and others in turn from each location.

    Args:
        images: the unreviewed ones.
        random: how many random ones.
        most: how many others, at most.
        seed: of the random part.
        gap_s: images of a location this near in time are one sequence, where the export names no sequences.
    """
    place = (images["source"] + "\n" + images["location"]).to_numpy(object)
    by_time = pd.Series(number_sequences(place, parse_seconds(images["taken"]), gap_s), images.index).astype(str)
    named = images["sequence"].astype(str)
    images = images.assign(sequence=(images["source"] + "\n" + named).where(named != "", by_time)).reset_index(drop=True)
    number = np.asarray(pd.factorize(images["sequence"])[0], np.int64)
    drawn = draw_random(number, random, seed)
    others = draw_random(number, len(images), seed + 7)  # one image of each sequence
    others = others[~np.isin(number[others], number[drawn])]
    location = pd.Series(place[others]).where(images["location"].to_numpy(object)[others] != "", UNKNOWN_LOCATION)
    names = (images["source"] + "/" + images["image_id"]).to_numpy(object)[others]
    chosen = np.concatenate([drawn, others[spread_over_locations(names.tolist(), location.tolist(), most, most)]])
    sequences = int(number.max(initial=-1) + 1)
    return Pool(images.iloc[chosen].reset_index(drop=True), np.arange(len(chosen)) < len(drawn), len(images), sequences)


def unreviewed_images(plan: Plan, store: Store, settings: Settings) -> pd.DataFrame:
    """All images of the plan's sources of which people reviewed nothing, with ``IMAGE_COLUMNS``; ``blob`` is still "".

    Raises:
        ImagesError: ``nothing_unreviewed``.
        ExportError, SettingsError: an export cannot be read.
    """
    parts = []
    for source in plan.sources:
        export = export_with_unreviewed(source, store, settings)
        images = store.table(export, EXPORT_IMAGES, ["image_id", "path", "location", "taken", "sequence"])
        annotations = store.table(export, EXPORT_ANNOTATIONS, ["image_id", "reviewed"])
        reviewed = annotations.loc[annotations["reviewed"], "image_id"]
        parts.append(images[~images["image_id"].isin(reviewed)].assign(source=source.name, blob=""))
    found = pd.concat(parts, ignore_index=True)[IMAGE_COLUMNS]
    if found.empty:
        raise ImagesError(
            "expected images without a review in the plan's exports, found none; name a folder of new images with --folder",
            code="nothing_unreviewed",
        )
    return found


def download_pool(pool: Pool, plan: Plan, store: Store, settings: Settings) -> Pool:
    """Download the pool's images; ``blob`` is filled where that worked."""
    blobs = pd.Series("", pool.images.index)
    for source in plan.sources:
        rows = pool.images[pool.images["source"] == source.name]
        if len(rows):
            status = download_all(source, rows[["image_id", "path"]], open_image_host(source, settings), store, settings, plan.images)
            known = status.downloaded_table().drop_duplicates("image_id").set_index("image_id")["blob"]
            blobs[rows.index] = rows["image_id"].map(known).fillna("").to_numpy(object)
    return pool._replace(images=pool.images.assign(blob=blobs))


def export_with_unreviewed(source: SourceConfig, store: Store, settings: Settings) -> Artifact:
    """The source's export, with the unreviewed images of Animl."""
    if source.project() is not None:
        source = source.model_copy(update={"animl": (source.animl or AnimlExportConfig()).model_copy(update={"only_reviewed": False})})
    return export_annotations(source, store, settings)
