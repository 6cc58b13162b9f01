"""What one export holds, in figures: its names, places, dates, and the problems that were found in it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.records import Artifact
from animl_pipeline.storage.step_cache import Store

TOLD = frozenset({"unreviewed", "no_capture_time"})
"""Notes of an export step whose figures a survey has itself."""


class Category(NamedTuple):
    """One name of an export. ``places`` counts objects by place, as <name space>/<place>; dates are days, empty where unknown."""

    name: str
    objects: int
    images: int
    boxes: int
    locations: Counter[str]
    first: str
    last: str


class Survey(NamedTuple):
    """One export in figures. ``problems`` counts what was left out or odd, as its export step found it."""

    source: SourceConfig
    images: int
    objects: int
    locations: frozenset[str]
    unplaced: int
    undated: int
    odd_dates: int
    unreviewed: int
    boxes: int
    first: str
    last: str
    categories: tuple[Category, ...]
    problems: dict[str, int]


def surveyed(source: SourceConfig, export: Artifact, store: Store, today: str) -> Survey:
    """An export in figures.

    Args:
        source: the source.
        export: its export step.
        store: holds it.
        today: ISO day; pictures from later days, and from before 2000, are of cameras whose clock was wrong.
    """
    images = store.table(export, "images.parquet")[["image_id", "location", "taken"]].astype(str)
    objects = store.table(export, "annotations.parquet")
    day = _days(images["taken"])
    odd = (day != "") & ((day < "2000") | (day > today))
    images = images.assign(day=day.mask(odd, ""), location=np.where(images["location"] == "", "", f"{source.namespace()}/" + images["location"]))
    both = objects.astype({"label": str, "image_id": str}).merge(images, on="image_id", how="left")
    known = sorted(d for d in images["day"].unique() if d)
    counts = export.counts
    return Survey(
        source=source,
        images=len(images),
        objects=len(objects),
        locations=frozenset(images["location"]) - {""},
        unplaced=int((images["location"] == "").sum()),
        undated=int((day == "").sum()),
        odd_dates=int(odd.sum()),
        unreviewed=int((~objects["reviewed"].astype(bool)).sum()),
        boxes=int(objects["x"].notna().sum()),
        first=known[0] if known else "",
        last=known[-1] if known else "",
        categories=tuple(_category(str(name), rows) for name, rows in both.groupby("label", sort=False, observed=True)),
        problems={**counts.dropped, **{k: n for k, n in counts.noted.items() if k not in TOLD}},
    )


def _days(taken: pd.Series) -> pd.Series:
    """The day of each time, as ISO text, empty where there is none; EXIF writes 2024:05:31."""
    said = taken.str.slice(0, 10).str.replace(":", "-", regex=False)
    known = pd.Series(said.unique())
    sound = known[pd.to_datetime(known, format="%Y-%m-%d", errors="coerce").notna() & (known.str.len() == len("2024-05-31"))]
    return said.where(said.isin(sound), "")


def _category(name: str, rows: pd.DataFrame) -> Category:
    days = rows.loc[rows["day"] != "", "day"]
    locations = Counter({str(p): int(n) for p, n in rows["location"].value_counts().items() if p and n})
    return Category(
        name=name,
        objects=len(rows),
        images=int(rows["image_id"].nunique()),
        boxes=int(rows["x"].notna().sum()),
        locations=locations,
        first=days.min() if len(days) else "",
        last=days.max() if len(days) else "",
    )
