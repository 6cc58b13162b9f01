"""Find near-duplicates: one image in two files with different bytes (resized or encoded again) at two locations.

Images look alike when their ``phash`` (128 bits, from the step `crops`) differs in few bits. At most 3 bits are a copy, whatever the times
say: clocks are wrong, and copies lose their times. Up to ``max_bits`` are one only if the times agree as well, to the second and up to a
whole number of quarter hours within a day (another time zone).

A hash that images of many locations share shows nothing of any of them (fog, or a lens cap). Such images are only likely copies, which
must not link all these locations.

The work is linear: candidates come from sorting, and each image is compared with the next few only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.steps.splits.grouping import Bools, Ints, connected_components, has_several, to_list

QUARTER_HOUR_S = 900
MAX_ZONE_DIFFERENCE_S = 26 * 3600
"""The largest difference between two time zones."""
COPY_BITS = 3
"""Images that differ in at most this many bits are copies at any time. It is below the number of bands, so they share one."""
MAX_LOCATIONS = 3
"""Images that look alike at more locations than this are only likely copies."""
BANDS = 4
NEIGHBOURS = 16
"""Each image is compared with this many next images at a second."""
MAX_COMPARISONS = 20_000_000
"""Pairs compared in each band, at most: 20 to 30 for each of a million images, if all of them looked alike."""


class Pairs(NamedTuple):
    """Pairs of images, as positions in a table."""

    one: Ints
    other: Ints


NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64))


def near_duplicates(images: pd.DataFrame, max_bits: int) -> tuple[Pairs, Pairs]:
    """Certain and likely near-duplicates among images of different locations. Some pairs are left out that others already connect.

    Args:
        images: columns ``location``, ``phash`` (32 hexadecimal digits, or "") and ``seconds`` (since 1970, NaN where unknown).
        max_bits: certain near-duplicates differ in at most this many of 128 bits.
    """
    rows = np.flatnonzero(images["phash"].str.len().to_numpy() == 32)
    hashed = images.iloc[rows]
    words = np.frombuffer(bytes.fromhex("".join(to_list(hashed["phash"]))), ">u8").astype(np.uint64).reshape(-1, 2)
    location = pd.factorize(hashed["location"])[0]
    seconds = hashed["seconds"].to_numpy(float)
    same_time = _same_time(words, location, seconds, max_bits)
    alike = _alike(words, location, min(max_bits, COPY_BITS))
    common = _at_many_locations(alike, location)
    certain = Pairs(*(np.concatenate([same_time[i], alike[i][~common]]) for i in (0, 1)))
    return Pairs(*(rows[i] for i in certain)), Pairs(*(rows[i[common]] for i in alike))


def _at_many_locations(pairs: Pairs, location: Ints) -> Bools:
    """For each pair, whether the images that it is connected with are from more than ``MAX_LOCATIONS`` locations."""
    component = connected_components(len(location), pairs.one, pairs.other)
    found = pd.DataFrame({"component": component, "location": location}).iloc[np.unique(np.concatenate(pairs))]
    return np.asarray(found.groupby("component")["location"].nunique().reindex(component[pairs.one]) > MAX_LOCATIONS, bool)


def _same_time(words: NDArray[np.uint64], location: Ints, seconds: NDArray[np.float64], max_bits: int) -> Pairs:
    timed = np.flatnonzero(~np.isnan(seconds))
    second = np.floor(seconds[timed]).astype(np.int64)
    order = np.lexsort((second, second % QUARTER_HOUR_S))
    timed, second = timed[order], second[order]

    def same_time(near: Ints, far: Ints) -> Bools:
        return np.asarray((second[near] % QUARTER_HOUR_S == second[far] % QUARTER_HOUR_S) & (second[far] - second[near] <= MAX_ZONE_DIFFERENCE_S))

    return _compare_neighbours(timed, same_time, words, location, max_bits, NEIGHBOURS)


def _alike(words: NDArray[np.uint64], location: Ints, max_bits: int) -> Pairs:
    """Images of different locations that differ in few bits, whatever their times. Two such images have one of the bands in common."""
    bands = np.stack([words[:, 0] >> 32, words[:, 0] & 0xFFFFFFFF, words[:, 1] >> 32, words[:, 1] & 0xFFFFFFFF])
    found = [NO_PAIRS]
    for band in range(BANDS):
        order = np.lexsort(np.roll(bands, -band, axis=0)[::-1])
        bucket = np.cumsum(np.diff(bands[band][order], prepend=bands[band][order[:1]]) != 0)
        several = has_several(bucket, location[order])[bucket]
        order, bucket = order[several], bucket[several]

        def same_band(near: Ints, far: Ints, bucket: Ints = bucket) -> Bools:
            return np.asarray(bucket[near] == bucket[far])

        neighbours = min(len(order), MAX_COMPARISONS // max(len(order), 1))
        found.append(_compare_neighbours(order, same_band, words, location, max_bits, neighbours))
    return Pairs(*(np.concatenate([pairs[i] for pairs in found]) for i in (0, 1)))


def _compare_neighbours(
    order: Ints, comparable: Callable[[Ints, Ints], Bools], words: NDArray[np.uint64], location: Ints, max_bits: int, neighbours: int
) -> Pairs:
    """Pairs of different locations with nearly equal words, among each image and its next neighbours in ``order``.

    ``comparable`` never holds for a far neighbour where it does not for a nearer one.
    """
    one, other = [NO_PAIRS.one], [NO_PAIRS.other]
    near = np.arange(len(order))
    for distance in range(1, neighbours + 1):
        near = near[near + distance < len(order)]
        near = near[comparable(near, near + distance)]
        if not len(near):
            break
        a, b = order[near], order[near + distance]
        found = (np.bitwise_count(words[a] ^ words[b]).sum(1) <= max_bits) & (location[a] != location[b])
        one.append(a[found])
        other.append(b[found])
    return Pairs(np.concatenate(one), np.concatenate(other))
