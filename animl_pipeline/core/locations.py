"""Which names of places mean one place: by what is known of them, and by where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

EARTH_M = 6_371_008.8
"""Mean radius of the Earth (IUGG), in metres."""


def merge_locations(
    names: Sequence[str], points: NDArray[np.float64], within_m: float | None, same: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Each name's place, called by the first of its names: those within ``within_m`` metres are one, and so is a chain of them.

    Distances are great-circle (haversine). A name that stands several times is one place, wherever it lies.

    Args:
        names: n names, in the order in which they give their place its name.
        points: [n, 2] latitude and longitude in degrees, NaN where unknown.
        within_m: None: nearness does not count.
        same: pairs of names that mean one place, each among ``names``.
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
        # with one sample enough for a core point, DBSCAN's clusters are the connected components of "nearer than eps"
        search = DBSCAN(eps=within_m / EARTH_M, min_samples=1, metric="haversine", algorithm="ball_tree")
        near = search.fit_predict(np.radians(points[known]))
        pairs += [(number[names[i]], len(distinct) + int(cluster)) for i, cluster in zip(known, near, strict=True)]
        nodes += int(near.max()) + 1
    edges = np.array(pairs, int).reshape(-1, 2)
    component = connected_components(coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes)), directed=False)[1]
    first: dict[int, str] = {}
    return {name: first.setdefault(int(c), name) for name, c in zip(distinct, component, strict=False)}
