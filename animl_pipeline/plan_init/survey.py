"""Count what one export has: its labels, locations, dates, and the problems that were found in it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES
from animl_pipeline.storage.store import Store

COUNTED_HERE = frozenset({"unreviewed", "no_capture_time"})
"""Notes of the export step that the survey counts itself."""
FIRST_YEAR = "2000"
"""Images dated before are from a camera whose clock was wrong."""


class LabelCounts(NamedTuple):
    """One label of an export, without annotations that the drafted plan drops as unreviewed.

    ``locations``: annotations per location (<namespace>/<location>); ``first`` and ``last`` are days or "".
    """

    label: str
    annotations: int
    images: int
    boxes: int
    locations: Counter[str]
    first: str
    last: str


class Survey(NamedTuple):
    """One export. ``problems`` counts what its export step dropped or found odd."""

    source: SourceConfig
    images: int
    annotations: int
    locations: frozenset[str]
    without_location: int
    without_date: int
    wrong_dates: int
    unreviewed: int
    boxes: int
    first: str
    last: str
    labels: tuple[LabelCounts, ...]
    problems: dict[str, int]


def survey_export(source: SourceConfig, export: Artifact, store: Store, today: str) -> Survey:
    """Count what an export has.

    ``today``: day as YYYY-MM-DD; later dates are wrong.
    """
    images = store.table(export, EXPORT_IMAGES)[["image_id", "location", "taken"]].astype(str)
    annotations = store.table(export, EXPORT_ANNOTATIONS)
    day = _days(images["taken"])
    wrong = (day != "") & ((day < FIRST_YEAR) | (day > today))
    images = images.assign(day=day.mask(wrong, ""), location=np.where(images["location"] == "", "", f"{source.namespace()}/" + images["location"]))
    reviewed = annotations["reviewed"].astype(bool)
    used = reviewed if reviewed.any() else ~reviewed  # of a source without a review, what `unreviewed: keep` would use
    rows = annotations.assign(used=used).astype({"label": str, "image_id": str}).merge(images, on="image_id", how="left")
    first, last = _first_and_last(images["day"])
    return Survey(
        source=source,
        images=len(images),
        annotations=len(annotations),
        locations=frozenset(images["location"]) - {""},
        without_location=int((images["location"] == "").sum()),
        without_date=int((day == "").sum()),
        wrong_dates=int(wrong.sum()),
        unreviewed=int((~annotations["reviewed"].astype(bool)).sum()),
        boxes=int(annotations["x"].notna().sum()),
        first=first,
        last=last,
        labels=tuple(_count_label(str(label), of_label) for label, of_label in rows.groupby("label", sort=False, observed=True)),
        problems={**export.counts.dropped, **{k: n for k, n in export.counts.notes.items() if k not in COUNTED_HERE}},
    )


def _days(taken: pd.Series) -> pd.Series:
    """The day of each time as YYYY-MM-DD, "" without a valid one. EXIF writes 2024:05:31."""
    days = taken.str.slice(0, 10).str.replace(":", "-", regex=False)
    unique = pd.Series(days.unique())
    valid = unique[pd.to_datetime(unique, format="%Y-%m-%d", errors="coerce").notna() & (unique.str.len() == len("2024-05-31"))]
    return days.where(days.isin(valid), "")


def _first_and_last(days: pd.Series) -> tuple[str, str]:
    known = sorted(d for d in days.unique() if d)
    return (known[0], known[-1]) if known else ("", "")


def _count_label(label: str, rows: pd.DataFrame) -> LabelCounts:
    rows = rows[rows["used"]]  # a label that no person validated stays in the list, with 0 annotations
    first, last = _first_and_last(rows["day"])
    return LabelCounts(
        label=label,
        annotations=len(rows),
        images=int(rows["image_id"].nunique()),
        boxes=int(rows["x"].notna().sum()),
        locations=Counter({str(p): int(n) for p, n in rows["location"].value_counts().items() if p and n}),
        first=first,
        last=last,
    )
