"""Well-known camera-trap sets of LILA (lila.science) by name: where their metadata and pictures lie below any of LILA's mirrors.

The paths stand in lila_datasets.csv, as LILA publishes them; they are the same in its buckets at Google, AWS and Azure.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

LILA = "lila://"


class LilaSet(NamedTuple):
    """One set: what it is, and its paths below a mirror. Counts are LILA's, for a first idea of what comes."""

    name: str
    title: str
    metadata: str
    images: str
    image_count: int
    boxes: int
    locations: int


@cache
def lila_sets() -> dict[str, LilaSet]:
    """The known sets by name."""
    with (Path(__file__).parent / "lila_datasets.csv").open(encoding="utf-8", newline="") as f:
        rows = [
            LilaSet(r["name"], r["title"], r["metadata"], r["images"], int(r["image_count"]), int(r["boxes"]), int(r["locations"]))
            for r in csv.DictReader(f)
        ]
    return {row.name: row for row in rows}


def lila_set(address: str) -> LilaSet:
    """The set that ``lila://<name>`` means.

    Raises:
        ValueError: it is not known; says which are.
    """
    name = address.removeprefix(LILA)
    if name not in lila_sets():
        raise ValueError(
            f"export: expected lila://<set>, a set being one of {', '.join(lila_sets())}; found {name!r} "
            "(any other is read by the https:// address of its metadata)"
        )
    return lila_sets()[name]


def lila_metadata(address: str, mirror: str) -> str:
    """Where the metadata of ``lila://<name>`` lie below a mirror."""
    return f"{mirror.rstrip('/')}/{lila_set(address).metadata}"


def lila_images(address: str, mirror: str) -> str:
    """Where the pictures of ``lila://<name>`` lie below a mirror."""
    return f"{mirror.rstrip('/')}/{lila_set(address).images}"
