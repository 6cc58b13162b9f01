"""Common names for locations that several sources share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.merge_locations import merge_locations
from animl_pipeline.core.table_schemas import EXPORT_IMAGES, EXPORT_LOCATIONS
from animl_pipeline.storage.store import Store


class SourceArtifacts(NamedTuple):
    """One source with the artifacts of its steps export and images. ``images`` is None before the images are downloaded."""

    source: SourceConfig
    export: Artifact
    images: Artifact | None = None


def shared_locations(sources: Sequence[SourceArtifacts], store: Store) -> dict[str, dict[str, str]]:
    """Source → the source's location name → the common name, for sources with a common ``location_namespace``.

    Two names are one location if they are equal, if an export merges them, or if their coordinates are within the largest of the
    sources' ``merge_locations_within_m``. The first source, by name, gives the common name.
    """
    namespaces: dict[str, list[SourceArtifacts]] = defaultdict(list)
    for artifacts in sorted(sources, key=lambda s: s.source.name):
        namespaces[artifacts.source.namespace()].append(artifacts)
    shared = (group for group in namespaces.values() if len(group) > 1)
    return {s.source.name: names for group in shared for names in [_common_names(group, store)] for s in group}


def _common_names(group: Sequence[SourceArtifacts], store: Store) -> dict[str, str]:
    rows = [row for artifacts in group for row in _known_locations(artifacts, store)]
    points = np.array([[lat, lon] for _, _, lat, lon in rows], float).reshape(-1, 2)
    limits = [s.source.merge_locations_within_m for s in group]
    within_m = max((m for m in limits if m is not None), default=None)
    names = [location for _, location, _, _ in rows] + [deployment for deployment, _, _, _ in rows]
    both = np.concatenate([np.full_like(points, np.nan), points])
    return merge_locations(names, both, within_m, [(deployment, location) for deployment, location, _, _ in rows])


def _known_locations(artifacts: SourceArtifacts, store: Store) -> list[tuple[str, str, float, float]]:
    """Rows of EXPORT_LOCATIONS; and a row without coordinates for each other location in the images."""
    rows: list[tuple[str, str, float, float]] = []
    if EXPORT_LOCATIONS.file in store.files(artifacts.export):
        table = store.arrow_table(artifacts.export, EXPORT_LOCATIONS)
        rows = [(r["deployment"], r["location"], r["lat"], r["lon"]) for r in table.to_pylist()]
    known = {location for _, location, _, _ in rows}
    in_images = pc.unique(store.arrow_table(artifacts.export, EXPORT_IMAGES, ["location"])["location"]).to_pylist()
    return rows + [(location, location, np.nan, np.nan) for location in sorted(filter(None, in_images)) if location not in known]
