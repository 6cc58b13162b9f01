"""What belongs together: crops of a place, and places tied by a burst, a picture, or a copy of a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Codes = NDArray[np.int64]
"""A number for each crop, the same for what is the same; -1 for none."""


def codes_of(column: pd.Series) -> Codes:
    """Numbers for texts; -1 for empty text."""
    values = pd.factorize(column)[0].astype(np.int64)
    empty = (column == "").to_numpy(bool)
    return np.where(empty, -1, values)


def texts(column: pd.Series) -> list[str]:
    """The texts of a column; much faster than going over the column itself."""
    return list(np.asarray(column, object))


def components(n: int, one: Codes, other: Codes) -> Codes:
    """For each of ``n`` nodes the number of the connected part that it is in."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def groups_of(location: Codes, ties: Sequence[Codes]) -> Codes:
    """A number for each crop: the same for crops of one place, and of places that share a tie."""
    if not len(location):
        return location
    edges = [_neighbours(tie, location) for tie in ties]
    one, other = (np.concatenate([e[i] for e in edges]) for i in (0, 1))
    return components(int(location.max()) + 1, one, other)[location]


def on_two(tie: Codes, what: Codes) -> NDArray[np.bool_]:
    """Which values of ``tie`` are with more than one value of ``what``: bool [max(tie) + 1, at least 1]."""
    n = int(tie.max(initial=0)) + 1
    tied = (tie >= 0) & (what >= 0)
    tie, what = tie[tied], what[tied]
    found = np.zeros(max(n, 1), bool)
    found[tie[what != _one_of(tie, what, n)]] = True
    return found


def _neighbours(tie: Codes, location: Codes) -> tuple[Codes, Codes]:
    """Pairs of places that share a value of ``tie``."""
    tied = tie >= 0
    tie, location = tie[tied], location[tied]
    other = _one_of(tie, location, int(tie.max(initial=0)) + 1)
    apart = location != other
    return location[apart], other[apart]


def _one_of(tie: Codes, what: Codes, n: int) -> Codes:
    """For each row one of the values that its ``tie`` is with, the same for all of its rows."""
    one = np.zeros(n, np.int64)
    one[tie] = what
    return one[tie]
