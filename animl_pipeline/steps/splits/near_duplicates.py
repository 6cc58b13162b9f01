"""Near duplicates: one picture in two files of different bytes, resized or encoded again, under two places.

Pictures look alike in ``phash`` (128 bits, from the crops step). Many night pictures do, so likeness alone never ties two
places together: a copy is certain only where the times agree as well, to the second and up to a whole number of quarter
hours within a day (another time zone). Where a time is unknown, a copy is only likely, and must agree in nearly every bit.

Work is linear: candidates come from sorting, and each picture meets only the next few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.steps.splits.grouping import texts

QUARTER_HOUR = 900
DAY = 26 * 3600
"""The farthest that two clocks of the world are apart, in seconds."""
LIKELY_BITS = 3
"""In how many bits pictures may differ where a time is unknown; below the number of bands, so that no pair is missed."""
BANDS = 4
NEXT = 16
"""How many neighbours in a band, or at a second, a picture is compared with."""

Indices = NDArray[np.int64]


class Pairs(NamedTuple):
    """Pairs of pictures, as indices of rows."""

    one: Indices
    other: Indices


def near_duplicates(images: pd.DataFrame, bits: int) -> tuple[Pairs, Pairs]:
    """Certain and likely copies of one another among pictures of different places.

    Args:
        pictures: ``place, phash, moment`` a row; moment is seconds since 1970 (NaN: unknown).
        bits: in how many of 128 bits certain copies may differ.
    """
    rows = np.flatnonzero(images["phash"].str.len().to_numpy() == 32)
    known = images.iloc[rows]
    words = np.frombuffer(bytes.fromhex("".join(texts(known["phash"]))), ">u8").astype(np.uint64).reshape(-1, 2)
    location = pd.factorize(known["location"])[0]
    moment = known["moment"].to_numpy(float)
    certain = _certain(words, location, moment, bits)
    likely = _likely(words, location, moment, min(bits, LIKELY_BITS))
    return Pairs(*(rows[i] for i in certain)), Pairs(*(rows[i] for i in likely))


def _certain(words: NDArray[np.uint64], location: Indices, moment: NDArray[np.float64], bits: int) -> Pairs:
    timed = np.flatnonzero(~np.isnan(moment))
    second = np.floor(moment[timed]).astype(np.int64)
    order = np.lexsort((second, second % QUARTER_HOUR))
    timed, second = timed[order], second[order]

    def together(near: Indices, far: Indices) -> NDArray[np.bool_]:
        return np.asarray((second[near] % QUARTER_HOUR == second[far] % QUARTER_HOUR) & (second[far] - second[near] <= DAY))

    return _compared(timed, together, words, location, bits)


def _likely(words: NDArray[np.uint64], location: Indices, moment: NDArray[np.float64], bits: int) -> Pairs:
    untimed = np.isnan(moment)
    if not untimed.any():
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))
    halves = np.stack([words[:, 0] >> 32, words[:, 0] & 0xFFFFFFFF, words[:, 1] >> 32, words[:, 1] & 0xFFFFFFFF])
    found = []
    for band in range(BANDS):
        order = np.lexsort(np.roll(halves, -band, axis=0)[::-1])
        key = halves[band][order]

        def together(near: Indices, far: Indices, key: NDArray[np.uint64] = key, order: Indices = order) -> NDArray[np.bool_]:
            return np.asarray((key[near] == key[far]) & (untimed[order[near]] | untimed[order[far]]))

        found.append(_compared(order, together, words, location, bits))
    return Pairs(*(np.concatenate([f[i] for f in found]) for i in (0, 1)))


def _compared(
    order: Indices, together: Callable[[Indices, Indices], NDArray[np.bool_]], words: NDArray[np.uint64], location: Indices, bits: int
) -> Pairs:
    """Pairs of different places and nearly the same words among each row and those that come next to it in ``order``."""
    one, other = [], []
    for step in range(1, NEXT + 1):
        near = np.arange(max(len(order) - step, 0))
        near = near[together(near, near + step)]
        a, b = order[near], order[near + step]
        alike = np.bitwise_count(words[a] ^ words[b]).sum(1) <= bits
        some = alike & (location[a] != location[b])
        one.append(a[some])
        other.append(b[some])
    return Pairs(np.concatenate(one), np.concatenate(other))
