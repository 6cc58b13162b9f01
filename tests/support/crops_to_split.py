"""Crops for tests of the step `splits`, and their splits as one table."""

from __future__ import annotations

import json

import pandas as pd

from animl_pipeline.config import SplitsConfig
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.splits import split_by_location
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.support.table_rows import fill_rows

CLASSES = ("fox", "bird", "rat")
Row = tuple[str, ...]
"""Location, class, sequence and image of a crop; perhaps also when it was taken, and its perceptual hash."""
COLUMNS = ("location", "class_id", "sequence", "image", "taken", "phash")


def crops_step(store: Store, rows: list[Row]) -> Artifact:
    """The artifact of a crops step with these crops."""
    given = [{"crop_id": f"c{i:05d}", "source": "isle"} | dict(zip(COLUMNS, row, strict=False)) for i, row in enumerate(rows)]
    return crops_step_of(store, fill_rows(CROPS, given), json.dumps(rows))


def crops_step_of(store: Store, table: pd.DataFrame, key: str) -> Artifact:
    """The artifact of a crops step with this table."""

    def build(space: Workspace) -> StepOutput:
        write_table(space.out, CROPS, table)
        return StepOutput(Counts(kept=len(table)))

    return store.make(Step("crops", version=1), config={"key": key}, build=build)


def island(locations: int, per_location: int = 12) -> list[Row]:
    """Crops at locations isle/p0, isle/p1, …, with classes in turn and three images a sequence."""
    return [(f"isle/p{p}", CLASSES[(p + i) % 3], f"isle/s{p}-{i // 3}", f"{p}-{i}") for p in range(locations) for i in range(per_location)]


def split(store: Store, rows: list[Row], config: SplitsConfig | None = None, classes: tuple[str, ...] = CLASSES) -> tuple[pd.DataFrame, Counts]:
    """The crops with the column ``split`` (NaN where a crop is in none), and the step's counts."""
    crops = crops_step(store, rows)
    made = split_by_location(crops, config or SplitsConfig(), classes, store, "m")
    leaks = json.loads(store.path(made, "leakage.json").read_text())
    assert leaks.pop("not_checked_at_unknown_locations") == made.counts.notes.get("leaks_not_checked", 0)
    assert set(leaks.values()) == {0}
    t = store.table(crops, "crops.parquet").merge(store.table(made, "splits.parquet"), on="crop_id", how="left")
    assert made.counts.kept == t["split"].notna().sum()
    assert sum(made.counts.dropped.values()) == t["split"].isna().sum() == len(store.table(made, "dropped.parquet"))
    return t, made.counts


def split_of_locations(t: pd.DataFrame) -> dict[str, str]:
    """Location → its split."""
    return dict(t.dropna(subset="split").groupby("location")["split"].first())
