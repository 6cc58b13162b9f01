"""Camera-trap data sets of LILA (lila.science) by name: the paths of their metadata and images below any of LILA's mirrors.

``lila_datasets.csv`` holds the paths as LILA publishes them; they are the same in its buckets at Google, AWS and Azure.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

LILA = "lila://"


class LilaDataset(NamedTuple):
    """One data set. ``metadata`` and ``images`` are paths below a mirror; the counts are LILA's."""

    name: str
    title: str
    metadata: str
    images: str
    image_count: int
    boxes: int
    locations: int


@cache
def lila_datasets() -> dict[str, LilaDataset]:
    """The known data sets by name."""
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as f:
        rows = [
            LilaDataset(r["name"], r["title"], r["metadata"], r["images"], int(r["image_count"]), int(r["boxes"]), int(r["locations"]))
            for r in csv.DictReader(f)
        ]
    return {row.name: row for row in rows}


def lila_dataset(address: str) -> LilaDataset:
    """The data set that ``lila://<name>`` names.

    Raises:
        ValueError: it is not known; the message lists the known ones.
    """
    name = address.removeprefix(LILA)
    if name not in lila_datasets():
        raise ValueError(
            f"export: expected lila://<data set> with one of {', '.join(lila_datasets())}; found {name!r} "
            "(for any other set, give the https:// address of its metadata)"
        )
    return lila_datasets()[name]


def lila_metadata(address: str, mirror: str) -> str:
    """The address of the metadata of ``lila://<name>`` in a mirror."""
    return f"{mirror.rstrip('/')}/{lila_dataset(address).metadata}"


def lila_images(address: str, mirror: str) -> str:
    """The base address of the images of ``lila://<name>`` in a mirror."""
    return f"{mirror.rstrip('/')}/{lila_dataset(address).images}"
