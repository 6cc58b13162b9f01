"""Values as exports have them, whatever their type, as columns.

Most columns hold one type throughout and become arrays at once; only others are looked at value by value.
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
"""No picture has sides of so many pixels: such a size is a fault."""
NO_BOX, BOX, BAD_BOX = 0, 1, 2
"""What an annotation has for a box: none, one, or something else."""


def column(rows: list[dict[str, Any]], field: str) -> list[Any]:
    """The values of a field, None where a record lacks it."""
    return [row.get(field) for row in rows]


def text(value: Any) -> str:
    """A value as text, nothing for None and NaN; halves of surrogate pairs, which JSON may hold and no file can, become '?'.

    A float that is a whole number is written as one, since tools that know no missing integers write 7 as 7.0.
    """
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, float) and abs(value) < 2**53 and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).encode("utf-8", "replace").decode()


def texts(values: list[Any]) -> pa.StringArray:
    """Values as texts."""
    if set(map(type, values)) <= {str, type(None)}:
        try:
            return pa.array(values, pa.string()).fill_null("")
        except UnicodeEncodeError:
            pass
    return pa.array([text(v) for v in values], pa.string())


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def numbers(values: list[Any]) -> Floats:
    """Values as float64, NaN for what is no finite number."""
    if set(map(type, values)) <= {int, float, type(None)}:
        try:
            found = np.array(values, np.float64)
        except OverflowError:
            pass
        else:
            found[~np.isfinite(found)] = np.nan
            return found
    return np.array([float(v) if is_number(v) else math.nan for v in values], np.float64)


def sizes(values: list[Any]) -> NDArray[np.int64]:
    """Values as pixels, 0 for what cannot be a size."""
    found = numbers(values)
    return np.where((found > 0) & (found < MAX_SIDE), found, 0).astype(np.int64)


def boxes(values: list[Any]) -> tuple[Floats, NDArray[np.int8]]:
    """[n, 4] of x, y, width and height (NaN where there is no box), and for each whether it is one."""
    kinds = np.full(len(values), BOX, np.int8)
    kinds[[i for i, v in enumerate(values) if v is None or v == []]] = NO_BOX
    found = np.full((len(values), 4), np.nan)
    four = [i for i, v in enumerate(values) if type(v) is list and len(v) == 4]
    flat = list(chain.from_iterable(values[i] for i in four))
    found[four] = (numbers(flat) if set(map(type, flat)) <= {int, float} else numbers([v if is_number(v) else None for v in flat])).reshape(-1, 4)
    kinds[(kinds == BOX) & np.isnan(found).any(1)] = BAD_BOX
    found[kinds != BOX] = np.nan
    return found, kinds


def box_text(box: Floats) -> str:
    """A box for a person: whole numbers without a point."""
    return f"[{', '.join(str(int(v)) if v == int(v) else repr(float(v)) for v in box)}]"


def first_fit(names: pa.Array, fit: Bools) -> tuple[Bools, Bools]:
    """Which rows are the first fit one of their name, and which come after it."""
    codes = names.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = np.full(int(codes.max(initial=-1)) + 1, len(codes))
    candidates = np.flatnonzero(fit)[::-1]
    first[codes[candidates]] = candidates  # of several the last assignment counts: the first row
    later = first[codes] < np.arange(len(codes))
    return fit & ~later, later
