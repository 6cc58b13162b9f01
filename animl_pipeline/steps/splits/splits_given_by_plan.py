"""Splits that the plan gives exactly: a table of locations and their splits (`splits.table`)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import numpy as np

from animl_pipeline.config import SplitsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SplitsError, SplitsTableUnreachableError, redact_url
from animl_pipeline.steps.splits.constraints import SplittableCrops
from animl_pipeline.steps.splits.grouping import Ints
from animl_pipeline.steps.splits.optimise import SPLIT_NAMES, TEST
from animl_pipeline.steps.splits.test_set_registry import TESTED, TRAINED
from animl_pipeline.storage.read_remote_files import RemoteError, read_path_or_url

NOT_IN_TABLE = "location_not_in_split_table"
COLUMNS = ("location", "split")


def read_split_table(config: SplitsConfig, settings: Settings) -> dict[str, str] | None:
    """Location (``<source>/<location>``) → train, val or test; None if the plan names no table.

    Raises:
        SplitsTableUnreachableError: the table's host does not answer now.
        SplitsError: ``no_split_table`` or ``wrong_split_table``: the table does not exist, or is not such a table.
    """
    if config.table is None:
        return None
    where = f"splits.table {redact_url(config.table)}"
    try:
        rows = list(csv.DictReader(io.StringIO(read_path_or_url(config.table, settings).decode("utf-8-sig"))))
    except RemoteError as e:
        kind = SplitsTableUnreachableError if e.retryable else SplitsError
        raise kind(f"{where}: expected a CSV of locations, found none: {e}", code="no_split_table") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise SplitsError(f"{where}: expected a CSV in UTF-8, found something else ({e})", code="wrong_split_table") from e
    if not rows or not set(COLUMNS) <= rows[0].keys():
        found = ", ".join(str(name) for name in rows[0] if name is not None) if rows else "no row"  # None: for more cells than columns
        raise SplitsError(f"{where}: expected the columns location and split, found {found}", code="wrong_split_table")
    table: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        location, split = ((row[c] or "").strip() for c in COLUMNS)
        if not location or split not in SPLIT_NAMES:
            found = f"{location!r} and {split!r}"
            raise SplitsError(f"{where}, row {number}: expected a location and train, val or test, found {found}", code="wrong_split_table")
        if table.setdefault(location, split) != split:
            message = f"{where}: expected each location in one split, found {location!r} in {table[location]} and in {split}"
            raise SplitsError(message, code="wrong_split_table")
    return table


def splits_by_table(crops: SplittableCrops, table: Mapping[str, str]) -> Ints:
    """The split of each group: int [groups]. All locations of the crops are in the table.

    Raises:
        SplitsError: ``table_conflict``: locations that share an image or a sequence are in two splits, or a location is in test that was learnt from,
            or in train or val although it was tested before.
    """
    wanted = np.array([SPLIT_NAMES.index(table[name]) if name in table else -1 for name in crops.locations], np.int64)[crops.location]
    groups = int(crops.group.max()) + 1
    first = np.full(groups, len(crops.group), np.int64)
    np.minimum.at(first, crops.group, np.arange(len(crops.group)))
    split = wanted[first]
    use = crops.location_use[crops.location]
    for wrong, why in (
        (wanted != split[crops.group], "shares a sequence or an image with a location of another split, {other}; put both into one split"),
        ((use == TESTED) & (wanted != TEST), "was used for testing before, and is never trained on; put it into test, or raise splits.test_set"),
        ((use == TRAINED) & (wanted == TEST), "was used for training before, so that its test scores would be too good; put it into train or val"),
    ):
        if wrong.any():
            crop = int(np.flatnonzero(wrong)[0])
            name, other = (crops.locations[int(crops.location[i])] for i in (crop, first[crops.group[crop]]))
            raise SplitsError(f"splits.table: the location {name!r} {why.format(other=repr(other))}", code="table_conflict", location=name)
    return split
