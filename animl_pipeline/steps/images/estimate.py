"""What a source's pictures would take, told before any travels."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import SourcePlan
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.images.fetch_index import Known
from animl_pipeline.steps.images.step import memory_of, wanted_images
from animl_pipeline.storage.step_cache import Store


class Outlook(NamedTuple):
    """How many pictures are wanted, how many of them the store holds with how many bytes, and which the source's limits leave out."""

    wanted: int
    here: int
    bytes_here: int
    over_limit: frozenset[str]

    @property
    def to_fetch(self) -> int:
        """Pictures that would travel."""
        return self.wanted - self.here


def foresee_images(source: SourcePlan, export: Artifact, wanted: Collection[str], store: Store) -> Outlook:
    """What :func:`animl_pipeline.steps.images.fetch_images` would have to do. Nothing is asked of the pictures' place."""
    images, _ = wanted_images(source, store, export, wanted)
    over = over_limits(images, source)
    known = Known(images.loc[~over, ["image_id", "path"]])
    known.recall(memory_of(source), store)
    return Outlook(len(known), int(known.here.sum()), int(known.arrived()["bytes"].sum()), frozenset(images.loc[over, "image_id"]))


OVER_LIMIT = "over_limit"


def over_limits(images: pd.DataFrame, source: SourcePlan) -> NDArray[np.bool_]:
    """Which of the pictures the source's limits leave out.

    The order in which pictures count is a hash of their ids, so that the choice stays as the source grows. Pictures of unknown
    place have no place to be too many of.

    Args:
        images: with ``image_id`` and ``place``.
        source: ``max_per_place`` is applied first, then ``max_images``.
    """
    over = np.zeros(len(images), bool)
    order = np.argsort(pd.util.hash_array(images["image_id"].to_numpy(object)), kind="stable")
    if source.max_per_place is not None:
        ordered = images["place"].iloc[order].astype(str)
        many = (ordered != "") & (ordered.groupby(ordered).cumcount() >= source.max_per_place)
        over[order[many.to_numpy()]] = True
    if source.max_images is not None:
        order = order[~over[order]]
        over[order[source.max_images :]] = True
    return over


def limits_of(source: SourcePlan) -> dict[str, int]:
    """The limits that a source has, as a part of what its pictures depend on."""
    return {k: v for k, v in (("max_images", source.max_images), ("max_per_place", source.max_per_place)) if v is not None}
