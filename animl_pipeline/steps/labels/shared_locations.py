"""Places that several sources share: where two exports are of one island, a camera is one place, whichever export names it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from animl_pipeline.core.locations import merge_locations
from animl_pipeline.storage.step_cache import Store

if TYPE_CHECKING:
    from animl_pipeline.steps.labels.annotations import SourceTables

Known = tuple[str, str, float, float]
"""A location, the place that its export takes it to be part of, and latitude and longitude."""


def shared_locations(sources: Sequence[SourceTables], store: Store) -> dict[str, dict[str, str]]:
    """For each source that shares its places: what its place names are called in the common name space.

    Names that are equal, names that one of the exports takes for one place, and places whose coordinates lie within the
    largest of the sources' ``merge_locations_within_m`` are one. The first source, by name, gives the name.
    """
    spaces: dict[str, list[SourceTables]] = defaultdict(list)
    for source in sorted(sources, key=lambda s: s.plan.name):
        spaces[source.plan.namespace()].append(source)
    return {s.plan.name: names for group in spaces.values() if len(group) > 1 for names in [_common(group, store)] for s in group}


def _common(group: Sequence[SourceTables], store: Store) -> dict[str, str]:
    rows = [row for source in group for row in _known(source, store)]
    points = np.array([[lat, lon] for _, _, lat, lon in rows], float).reshape(-1, 2)
    limits = [s.plan.merge_locations_within_m for s in group]
    within = max((m for m in limits if m is not None), default=None)
    names = [location for _, location, _, _ in rows] + [deployment for deployment, _, _, _ in rows]
    both = np.concatenate([np.full_like(points, np.nan), points])
    return merge_locations(names, both, within, [(deployment, location) for deployment, location, _, _ in rows])


def _known(source: SourceTables, store: Store) -> list[Known]:
    """What an export knows of its places; those of its images that it knows nothing of are places of their own."""
    rows: list[Known] = []
    if "locations.parquet" in store.files(source.export):
        table = pq.read_table(store.path(source.export, "locations.parquet"), columns=["deployment", "location", "lat", "lon"])
        rows = [(r["deployment"], r["location"], r["lat"], r["lon"]) for r in table.to_pylist()]
    said = pc.unique(pq.read_table(store.path(source.export, "images.parquet"), columns=["location"])["location"]).to_pylist()
    told = {location for _, location, _, _ in rows}
    return rows + [(location, location, np.nan, np.nan) for location in sorted(p for p in said if p) if location not in told]
