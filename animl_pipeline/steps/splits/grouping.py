"""Group locations that must be in the same split, because they share a sequence, an image, or a copy of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Ints = NDArray[np.int64]
"""A number for each crop, the same for crops with the same value; -1 for no value."""
Bools = NDArray[np.bool_]


def number_texts(column: pd.Series) -> Ints:
    """A number for each text; -1 for empty text."""
    numbers = pd.factorize(column)[0].astype(np.int64)
    return np.where((column == "").to_numpy(bool), -1, numbers)


def to_list(column: pd.Series) -> list[str]:
    """The texts of a column; much faster than iterating over the column itself."""
    return list(np.asarray(column, object))


def connected_components(n: int, one: Ints, other: Ints) -> Ints:
    """For each of ``n`` nodes the number of its connected component. The edges go from ``one`` to ``other``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components as components

    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(n, n))
    return np.asarray(components(graph, directed=False)[1], np.int64)


def group_crops(location: Ints, links: Sequence[Ints]) -> Ints:
    """A number for each crop: the same for crops of one location, and of locations that share a value of any of ``links``."""
    if not len(location):
        return location
    edges = [_linked_locations(link, location) for link in links]
    one, other = (np.concatenate([e[i] for e in edges]) for i in (0, 1))
    return connected_components(int(location.max()) + 1, one, other)[location]


def has_several(link: Ints, value: Ints) -> Bools:
    """For each value of ``link``, whether it occurs with several values of ``value``: bool [max(link) + 1, at least 1]."""
    n = int(link.max(initial=0)) + 1
    both = (link >= 0) & (value >= 0)
    link, value = link[both], value[both]
    found = np.zeros(max(n, 1), bool)
    found[link[value != _any_value(link, value, n)]] = True
    return found


def _linked_locations(link: Ints, location: Ints) -> tuple[Ints, Ints]:
    """Pairs of locations that share a value of ``link``."""
    linked = link >= 0
    link, location = link[linked], location[linked]
    other = _any_value(link, location, int(link.max(initial=0)) + 1)
    different = location != other
    return location[different], other[different]


def _any_value(link: Ints, value: Ints, n: int) -> Ints:
    """For each row one of the values that occur with its ``link``, the same for all rows of this link."""
    chosen = np.zeros(n, np.int64)
    chosen[link] = value
    return chosen[link]
