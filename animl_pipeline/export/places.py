"""Camera deployments that stand at one place, whatever they are called: a renamed deployment is no new place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.animl import CameraDeployment
from animl_pipeline.animl.filters import iso

EARTH_M = 6_371_008.8
"""Mean radius of the Earth (IUGG), in metres."""
COLUMNS = ("location", "place", "lat", "lon")


class Location(NamedTuple):
    """A deployment's name as exports have it, the place it is part of, and where its first deployment stood (degrees)."""

    location: str
    place: str
    lat: float
    lon: float


def merged_places(deployments: list[CameraDeployment], within_m: float | None) -> list[Location]:
    """Each location's place, by name: locations within ``within_m`` metres of each other are one, and so is a chain of them.

    Distances are great-circle (haversine). A place has the name of its oldest deployment, so that it keeps its name when a
    new one is added. A name that is used at several places counts as one: an export says the name only.
    """
    ordered = sorted(deployments, key=lambda d: (d.started is None, iso(d.started) if d.started else "", d.location, d.camera, d.lat, d.lon))
    first = {d.location: d for d in reversed(ordered)}
    place = _oldest_names(ordered, within_m) if within_m is not None and ordered else {name: name for name in first}
    return sorted(Location(name, place[name], d.lat, d.lon) for name, d in first.items())


def _oldest_names(ordered: list[CameraDeployment], within_m: float) -> dict[str, str]:
    """Location → the oldest location of its place. ``ordered`` is oldest first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.cluster import DBSCAN

    points = np.radians([[d.lat, d.lon] for d in ordered])
    # with one sample enough for a core point, DBSCAN's clusters are the connected components of "nearer than eps"
    near = DBSCAN(eps=within_m / EARTH_M, min_samples=1, metric="haversine", algorithm="ball_tree").fit_predict(points)
    names = list(dict.fromkeys(d.location for d in ordered))
    number = {name: i for i, name in enumerate(names)}
    nodes = len(names) + int(near.max()) + 1
    name_of = [number[d.location] for d in ordered]
    edges = coo_array((np.ones(len(ordered)), (name_of, len(names) + near)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1][: len(names)]
    oldest: dict[int, str] = {}
    return {name: oldest.setdefault(int(c), name) for name, c in zip(names, component, strict=True)}


def places_table(locations: list[Location]) -> pd.DataFrame:
    """The locations as a table."""
    return pd.DataFrame(locations, columns=list(COLUMNS)).astype({"location": str, "place": str, "lat": float, "lon": float})
