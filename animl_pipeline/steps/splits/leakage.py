"""The proof of a split: how much lies on two sides, and how much of the past is on the wrong one. All of it must be zero."""

from __future__ import annotations

import numpy as np
import pandas as pd

from animl_pipeline.steps.splits.grouping import Codes, on_two
from animl_pipeline.steps.splits.history import USES, WAS_LEARNT, WAS_TESTED
from animl_pipeline.steps.splits.near_duplicates import Pairs
from animl_pipeline.steps.splits.optimise import TEST
from animl_pipeline.steps.splits.read_crops import Table
from animl_pipeline.steps.splits.test_set_registry import MARK, Past


def leaks(table: Table, side: Codes, past: Past) -> dict[str, int]:
    """How many places, bursts, pictures and copies of pictures lie on two sides; how many crops are learnt from though once
    tested on, or tested on though once learnt from. ``side``: 0 train, 1 val, 2 test, -1 on none.
    """
    was = _was(table, past)
    return {
        "locations": int(on_two(table.location, side).sum()),
        "bursts": int(on_two(table.burst, side).sum()),
        "images": int(on_two(table.image, side).sum()),
        "near_duplicates": int(on_two(table.copy, side).sum()) + _apart(table, side, table.likely),
        "once_tested": int(((side >= 0) & (side != TEST) & (was == WAS_TESTED)).sum()),
        "once_learnt_from": int(((side == TEST) & (was == WAS_LEARNT)).sum()),
    }


def side_of_images(table: Table, side: Codes) -> Codes:
    """The side of each picture; -1 where none of its crops is on any."""
    found = np.full(len(table.images), -1, np.int64)
    np.maximum.at(found, table.image, side)
    return found


def _apart(table: Table, side: Codes, pairs: Pairs) -> int:
    sides = side_of_images(table, side)
    one, other = sides[pairs.one], sides[pairs.other]
    return int(((one >= 0) & (other >= 0) & (one != other)).sum())


def _was(table: Table, past: Past) -> Codes:
    """What the register says of each crop, by its picture or else by the name of its place."""
    location = np.array([USES.get(past.locations.get(name, ""), 0) for name in (*table.locations, "")], np.int64)[table.location]
    if not past.images:
        return location
    done = past.done().map({n: USES[use.how] for n, use in enumerate(sorted(past.images))})
    image = pd.Series(table.images, dtype=str).str.slice(0, MARK).map(done).to_numpy(float)[table.image]
    return np.where(np.isnan(image), location, image).astype(np.int64)
