"""What a source's pictures would take, told before any travels."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.images.fetch_index import Known
from animl_pipeline.steps.images.max_images import over_limits
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


def foresee_images(source: SourceConfig, export: Artifact, wanted: Collection[str], store: Store) -> Outlook:
    """What :func:`animl_pipeline.steps.images.fetch_images` would have to do. Nothing is asked of the pictures' place."""
    images, _ = wanted_images(source, store, export, wanted)
    over = over_limits(images, source)
    known = Known(images.loc[~over, ["image_id", "path"]])
    known.recall(memory_of(source), store)
    return Outlook(len(known), int(known.here.sum()), int(known.arrived()["bytes"].sum()), frozenset(images.loc[over, "image_id"]))
