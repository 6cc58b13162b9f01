"""Merge location names that mean the same location: those known to be the same, and those near to each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the Earth in metres (IUGG)."""


def merge_locations(
    names: Sequence[str], points: NDArray[np.float64], within_m: float | None, same: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Each name's location, called by the first of its names.

    Names within ``within_m`` metres of each other are one location, and so is a chain of such names. Distances are great-circle
    distances (haversine). A name that occurs several times is one location, whatever its coordinates.

    Args:
        names: n names; the first name of a location is the location's name.
        points: [n, 2], latitude and longitude in degrees, NaN where unknown.
        within_m: None: names are not merged by distance.
        same: pairs of names of one location, each among ``names``.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.cluster import DBSCAN

    distinct = list(dict.fromkeys(names))
    number = {name: i for i, name in enumerate(distinct)}
    pairs = [(number[a], number[b]) for a, b in same]
    known = np.flatnonzero(~np.isnan(points).any(axis=1)) if within_m is not None else np.array([], int)
    nodes = len(distinct)
    if len(known) and within_m is not None:
        # with min_samples=1, DBSCAN's clusters are the connected components of "nearer than eps"
        clusters = DBSCAN(eps=within_m / EARTH_RADIUS_M, min_samples=1, metric="haversine", algorithm="ball_tree").fit_predict(
            np.radians(points[known])
        )
        pairs += [(number[names[i]], len(distinct) + int(cluster)) for i, cluster in zip(known, clusters, strict=True)]
        nodes += int(clusters.max()) + 1
    edges = np.array(pairs, int).reshape(-1, 2)
    component = connected_components(coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes)), directed=False)[1]
    first: dict[int, str] = {}
    return {name: first.setdefault(int(c), name) for name, c in zip(distinct, component, strict=False)}
