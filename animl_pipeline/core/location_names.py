"""Names of locations: one spelling for each, one name for locations near to each other, and the placeholders for an unknown location."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING
from unicodedata import normalize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLACEHOLDERS = frozenset(
    {
        *"nan nat none null nil na no unknown unk undefined unspecified undetermined unidentified unavailable missing false true tbd tba".split(),
        *("n a", "not available", "not applicable", "not recorded", "not known", "to be determined", "no data", "no value", "no name"),
    }
)
"""What tools and people write where a location is missing, without case and punctuation; alone or with a word of GENERIC."""
GENERIC = frozenset("location locality place site station camera deployment".split())
MISSING_NUMBERS = re.compile(r"-(1|9+)(\.0*)?")
"""-1, -9, -99, -999, -9999: how numeric columns write a missing value."""
SPREADSHEET_ERRORS = frozenset({"#ref!", "#value!", "#name?", "#null!", "#div/0!", "#num!"})
ZERO, ONE = re.compile(r"0+(\.0*)?"), re.compile(r"0*1(\.0*)?")
EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the Earth in metres (IUGG)."""


def tidy_name(name: str) -> str:
    """A name in Unicode's form NFC, with single spaces (of any kind) between its words and none around it."""
    return " ".join(normalize("NFC", name).replace("\u200b", "").replace("\ufeff", "").split())


def is_placeholder(name: str) -> bool:
    """Whether a name says nothing about where the camera was, such as "", "nan", "N/A", "unknown site", "-" or "-1"."""
    text = tidy_name(name).casefold()
    words = re.sub(r"[\W_]+", " ", text).split()
    if not words or MISSING_NUMBERS.fullmatch(text) or text in SPREADSHEET_ERRORS:
        return True
    return " ".join(words) in PLACEHOLDERS or " ".join(word for word in words if word not in GENERIC) in PLACEHOLDERS


def known_locations(names: Collection[str]) -> dict[str, str]:
    """Each of one source's location names → its location, "" where the name is a placeholder.

    Names that differ only in their spaces or in Unicode's form are one location. 0 is a placeholder, unless the source also has a
    location 1: then it numbers its locations from 0.
    """
    tidy = {name: tidy_name(name) for name in names}
    from_zero = any(ONE.fullmatch(location) for location in tidy.values())
    return {name: "" if is_placeholder(location) or (ZERO.fullmatch(location) and not from_zero) else location for name, location in tidy.items()}


def merge_locations(
    names: Sequence[str], points: NDArray[np.float64], within_m: float | None, same: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Each name's location, called by the first of its names.

    Names within ``within_m`` metres of each other are one location, and so is a chain of such names. Distances are great-circle
    distances (haversine). A name that occurs several times is one location, whatever its coordinates.

    ``points``: [n, 2], latitude and longitude in degrees, NaN where unknown. ``within_m``: None: names are not merged by distance. ``same``:
    pairs of names of one location, each among ``names``.
    """
    import numpy as np
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
