"""Rows of a declared table for tests: columns that a test does not care about get an empty value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from animl_pipeline.core.tables import Table

EMPTY_VALUES = {"string": "", "int64": 0, "double": 0.0, "float": 0.0, "bool": False}


def fill_rows(table: Table, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows with all declared columns, in the declared order."""
    return pd.DataFrame({c.name: [row.get(c.name, EMPTY_VALUES[c.type]) for row in rows] for c in table.columns})
