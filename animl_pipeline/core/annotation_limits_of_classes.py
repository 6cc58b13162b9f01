"""What the step images must know of the limits of the plan's classes, to leave out images that no class can use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple


class ClassLimits(NamedTuple):
    """The limits of classes, as they apply to one source.

    Attributes:
        key: JSON that the choice depends on, besides the export and the source: a part of the cache key.
        left_out: ids of the images that the source's own limits leave out → ids of the other images that no class can use.
    """

    key: Mapping[str, Any]
    left_out: Callable[[Collection[str]], frozenset[str]]
