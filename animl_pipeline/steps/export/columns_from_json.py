"""Columns from JSON values of any type: text, numbers, image sizes and boxes.

Most fields of an export hold one type throughout; their values become an array at once. Only mixed fields are converted value
by value.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAX_SIDE = 1 << 31
"""A width or height of so many pixels or more is a fault."""
NO_BOX, BOX, BAD_BOX = 0, 1, 2
"""What an annotation has as its box: nothing, a box, or something else."""


def column(rows: list[dict[str, Any]], field: str) -> list[Any]:
    """The values of one field, None where a record lacks it."""
    return [row.get(field) for row in rows]


def to_text(value: Any) -> str:
    """A value as text that a table can hold; "" for None and NaN.

    A whole float is written without a point, since tools without missing integers write 7 as 7.0. Half of a surrogate pair,
    which JSON may hold and UTF-8 cannot, becomes "?".
    """
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, float) and abs(value) < 2**53 and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).encode("utf-8", "replace").decode()


def text_column(values: list[Any]) -> pa.StringArray:
    """Values as text; see :func:`to_text`."""
    if set(map(type, values)) <= {str, type(None)}:
        try:
            return pa.array(values, pa.string()).fill_null("")
        except UnicodeEncodeError:
            pass
    return pa.array([to_text(v) for v in values], pa.string())


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def number_column(values: list[Any]) -> Floats:
    """Values as float64, NaN for everything that is not a finite number."""
    if set(map(type, values)) <= {int, float, type(None)}:
        try:
            found = np.array(values, np.float64)
        except OverflowError:
            pass
        else:
            found[~np.isfinite(found)] = np.nan
            return found
    return np.array([float(v) if is_number(v) else math.nan for v in values], np.float64)


def size_column(values: list[Any]) -> NDArray[np.int64]:
    """Widths or heights in pixels, 0 for everything that cannot be one."""
    found = number_column(values)
    return np.where((found > 0) & (found < MAX_SIDE), found, 0).astype(np.int64)


def box_columns(values: list[Any]) -> tuple[Floats, NDArray[np.int8]]:
    """Boxes as [n, 4] x, y, width and height (NaN where there is none), and for each NO_BOX, BOX or BAD_BOX."""
    kinds = np.full(len(values), BOX, np.int8)
    kinds[[i for i, v in enumerate(values) if v is None or v == []]] = NO_BOX
    boxes = np.full((len(values), 4), np.nan)
    four = [i for i, v in enumerate(values) if type(v) is list and len(v) == 4]
    flat = list(chain.from_iterable(values[i] for i in four))
    if not set(map(type, flat)) <= {int, float}:
        flat = [_finite_number(v) for v in flat]
    boxes[four] = number_column(flat).reshape(-1, 4)
    kinds[(kinds == BOX) & np.isnan(boxes).any(1)] = BAD_BOX
    boxes[kinds != BOX] = np.nan
    return boxes, kinds


def _finite_number(value: Any) -> float | None:
    """A finite number, perhaps written as text (as tables of texts become JSON); None for all else."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return number if is_number(number) else None


def format_box(box: Floats) -> str:
    """A box for a message; whole numbers have no point."""
    return f"[{', '.join(str(int(v)) if v == int(v) else repr(float(v)) for v in box)}]"


def as_mask(values: Any) -> Bools:
    """A pyarrow array of booleans as a numpy array."""
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def first_of_each_id(ids: pa.Array, usable: Bools) -> tuple[Bools, Bools]:
    """Which rows are the first usable one of their id, and which rows come after that one."""
    codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = np.full(int(codes.max(initial=-1)) + 1, len(codes))
    candidates = np.flatnonzero(usable)[::-1]
    first[codes[candidates]] = candidates  # of several assignments numpy keeps the last: the first row
    later = first[codes] < np.arange(len(codes))
    return usable & ~later, later
