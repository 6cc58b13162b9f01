"""The table of crops as numbers: what is the same place, burst, picture, or copy of a picture has the same number."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from animl_pipeline.config import SplitsConfig
from animl_pipeline.steps.splits.grouping import Codes, codes_of, components
from animl_pipeline.steps.splits.near_duplicates import Pairs, near_duplicates
from animl_pipeline.steps.splits.timestamps import days_of, moments_of

NEEDED = ("crop_id", "location", "class_id", "sequence", "image")
OPTIONAL = ("source", "taken", "phash")
"""Empty text where a table does not have them."""


class Table(NamedTuple):
    """Crops in the order of their ids; numbers are -1 where there is nothing."""

    rows: pd.DataFrame
    location: Codes
    locations: tuple[str, ...]  # sorted names
    image: Codes
    images: NDArray[np.object_]  # names
    burst: Codes
    copy: Codes  # pictures that are certain copies of one another
    likely: Pairs  # pictures that are likely copies of one another
    moment: NDArray[np.float64]  # seconds since 1970, NaN where unknown or of no use
    day: NDArray[np.datetime64]  # NaT where unknown or of no use

    def ties(self) -> tuple[Codes, ...]:
        """What ties places together."""
        return self.burst, self.image, self.copy


def read_crops(path: Path) -> pd.DataFrame:
    """What the step needs of crops.parquet, by crop id."""
    there = set(pq.read_schema(path).names)
    rows = pd.read_parquet(path, columns=[c for c in (*NEEDED, *OPTIONAL) if c in there])
    if not rows["crop_id"].is_monotonic_increasing:
        rows = rows.sort_values("crop_id", ignore_index=True)
    return rows


def numbered(crops: pd.DataFrame, spec: SplitsConfig) -> Table:
    """The crops in numbers; near duplicates are looked for where the plan and the table allow it."""
    rows = crops.assign(**{c: "" for c in OPTIONAL if c not in crops})
    location = pd.Categorical(rows["location"])
    names = tuple(location.categories)
    nowhere = names.index("") if "" in names else None
    codes = np.asarray(location.codes, np.int64)
    if nowhere is not None:  # empty text comes first
        codes, names = codes - 1, names[1:]
    image, images = pd.factorize(rows["image"])
    first = ~pd.Series(image).duplicated().to_numpy()
    taken = rows.loc[first, "taken"]
    timed, dated = "phash" in crops or spec.unknown_location == "train", bool(spec.train_only_before or spec.test_only_after)
    moment = (moments_of(taken) if timed else np.full(len(taken), np.nan))[image]
    day = (days_of(taken) if dated else np.full(len(taken), "NaT", "datetime64[D]"))[image]
    certain, likely = _copies(rows[first], codes[first], moment[first], spec.near_duplicate_bits)
    return Table(
        rows, codes, names, image.astype(np.int64), np.asarray(images, object), codes_of(rows["sequence"]),
        _clusters(len(images), certain)[image], likely, moment, day,
    )  # fmt: skip


def _copies(images: pd.DataFrame, location: Codes, moment: NDArray[np.float64], bits: int | None) -> tuple[Pairs, Pairs]:
    if bits is None:
        none = np.zeros(0, np.int64)
        return Pairs(none, none), Pairs(none, none)
    return near_duplicates(pd.DataFrame({"location": location, "phash": images["phash"].to_numpy(), "moment": moment}), bits)


def _clusters(n: int, pairs: Pairs) -> Codes:
    """For each of ``n`` pictures the number of the copies that it is one of; -1 where it has none."""
    codes = np.full(n, -1, np.int64)
    if len(pairs.one):
        codes[:] = components(n, pairs.one, pairs.other)
        alone = np.bincount(codes)[codes] == 1
        codes[alone] = -1
    return codes
