"""Find near-duplicates: one image in two files with different bytes (resized or encoded again) at two locations.

Images look alike when their ``phash`` (128 bits, from the step `crops`) differs in few bits. Many night images look alike, so this
alone never links two locations: a near-duplicate is certain only if the times agree as well, to the second and up to a whole number
of quarter hours within a day (another time zone). If a time is unknown, it is only likely, and nearly all bits must agree.

The work is linear: candidates come from sorting, and each image is compared with the next few only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.steps.splits.grouping import Bools, Ints, to_list

QUARTER_HOUR_S = 900
MAX_ZONE_DIFFERENCE_S = 26 * 3600
"""The largest difference between two time zones."""
LIKELY_BITS = 3
"""Likely near-duplicates differ in at most this many bits. It is below the number of bands, so no pair is missed."""
BANDS = 4
NEIGHBOURS = 16
"""Each image is compared with this many next images, in a band or at a second."""


class Pairs(NamedTuple):
    """Pairs of images, as positions in a table."""

    one: Ints
    other: Ints


NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))


def near_duplicates(images: pd.DataFrame, max_bits: int) -> tuple[Pairs, Pairs]:
    """Certain and likely near-duplicates among images of different locations.

    Args:
        images: columns ``location``, ``phash`` (32 hexadecimal digits, or "") and ``seconds`` (since 1970, NaN where unknown).
        max_bits: certain near-duplicates differ in at most this many of 128 bits.
    """
    rows = np.flatnonzero(images["phash"].str.len().to_numpy() == 32)
    hashed = images.iloc[rows]
    words = np.frombuffer(bytes.fromhex("".join(to_list(hashed["phash"]))), ">u8").astype(np.uint64).reshape(-1, 2)
    location = pd.factorize(hashed["location"])[0]
    seconds = hashed["seconds"].to_numpy(float)
    certain = _certain(words, location, seconds, max_bits)
    likely = _likely(words, location, seconds, min(max_bits, LIKELY_BITS))
    return Pairs(*(rows[i] for i in certain)), Pairs(*(rows[i] for i in likely))


def _certain(words: NDArray[np.uint64], location: Ints, seconds: NDArray[np.float64], max_bits: int) -> Pairs:
    timed = np.flatnonzero(~np.isnan(seconds))
    second = np.floor(seconds[timed]).astype(np.int64)
    order = np.lexsort((second, second % QUARTER_HOUR_S))
    timed, second = timed[order], second[order]

    def same_time(near: Ints, far: Ints) -> Bools:
        return np.asarray((second[near] % QUARTER_HOUR_S == second[far] % QUARTER_HOUR_S) & (second[far] - second[near] <= MAX_ZONE_DIFFERENCE_S))

    return _compare_neighbours(timed, same_time, words, location, max_bits)


def _likely(words: NDArray[np.uint64], location: Ints, seconds: NDArray[np.float64], max_bits: int) -> Pairs:
    untimed = np.isnan(seconds)
    if not untimed.any():
        return NO_PAIRS
    bands = np.stack([words[:, 0] >> 32, words[:, 0] & 0xFFFFFFFF, words[:, 1] >> 32, words[:, 1] & 0xFFFFFFFF])
    found = []
    for band in range(BANDS):
        order = np.lexsort(np.roll(bands, -band, axis=0)[::-1])
        key = bands[band][order]

        def same_band(near: Ints, far: Ints, key: NDArray[np.uint64] = key, order: Ints = order) -> Bools:
            return np.asarray((key[near] == key[far]) & (untimed[order[near]] | untimed[order[far]]))

        found.append(_compare_neighbours(order, same_band, words, location, max_bits))
    return Pairs(*(np.concatenate([pairs[i] for pairs in found]) for i in (0, 1)))


def _compare_neighbours(order: Ints, comparable: Callable[[Ints, Ints], Bools], words: NDArray[np.uint64], location: Ints, max_bits: int) -> Pairs:
    """Pairs of different locations with nearly equal words, among each image and its next neighbours in ``order``."""
    one, other = [], []
    for distance in range(1, NEIGHBOURS + 1):
        near = np.arange(max(len(order) - distance, 0))
        near = near[comparable(near, near + distance)]
        a, b = order[near], order[near + distance]
        found = (np.bitwise_count(words[a] ^ words[b]).sum(1) <= max_bits) & (location[a] != location[b])
        one.append(a[found])
        other.append(b[found])
    return Pairs(np.concatenate(one), np.concatenate(other))
