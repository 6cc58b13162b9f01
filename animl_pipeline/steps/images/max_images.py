"""A source's own limits: at most so many images, and of one location, chosen before any is downloaded."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SourceConfig

OVER_LIMIT = "over_limit"


def over_limits(images: pd.DataFrame, source: SourceConfig) -> NDArray[np.bool_]:
    """Which of the pictures the source's limits leave out.

    The order in which pictures count is a hash of their ids, so that the choice stays as the source grows. Pictures of unknown
    place have no place to be too many of.

    Args:
        images: with ``image_id`` and ``place``.
        source: ``max_per_location`` is applied first, then ``max_images``.
    """
    over = np.zeros(len(images), bool)
    order = np.argsort(pd.util.hash_array(images["image_id"].to_numpy(object)), kind="stable")
    if source.max_per_location is not None:
        ordered = images["location"].iloc[order].astype(str)
        many = (ordered != "") & (ordered.groupby(ordered).cumcount() >= source.max_per_location)
        over[order[many.to_numpy()]] = True
    if source.max_images is not None:
        order = order[~over[order]]
        over[order[source.max_images :]] = True
    return over


def limits_of(source: SourceConfig) -> dict[str, int]:
    """The limits that a source has, as a part of what its pictures depend on."""
    return {k: v for k, v in (("max_images", source.max_images), ("max_per_location", source.max_per_location)) if v is not None}
