"""Tables: written with the declared columns and types only, the same bytes for the same rows, and checked when they are read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.errors import TableError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import SPLITS
from animl_pipeline.core.tables import Column, Table, check_schema, write_table
from animl_pipeline.core.tables_of_steps import TABLES
from animl_pipeline.storage.store import StepOutput, Store, Workspace

SCORES = Table("scores.parquet", "one score", (Column("id", "string", "id"), Column("n", "int64", "number")), class_columns="p_", class_type="float")


def test_rows_are_written_with_the_declared_types(tmp_path: Path) -> None:
    write_table(tmp_path, SCORES, pd.DataFrame({"id": ["a"], "n": [1], "p_fox": [0.5]}))
    found = pq.read_table(tmp_path / SCORES.file)
    assert found.schema.types == [pa.string(), pa.int64(), pa.float32()]
    assert found.to_pylist() == [{"id": "a", "n": 1, "p_fox": 0.5}]
    check_schema(tmp_path / SCORES.file, SCORES)


def test_a_table_without_rows_has_the_declared_types_too(tmp_path: Path) -> None:
    write_table(tmp_path, SCORES, pd.DataFrame({"id": [], "n": []}))
    check_schema(tmp_path / SCORES.file, SCORES)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name, SCORES, pd.DataFrame({"id": ["a", "b"], "n": [1, 2]}))
        written.append((tmp_path / name / SCORES.file).read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "rows",
    [{"id": ["a"]}, {"id": ["a"], "n": [1], "other": [2]}, {"n": [1], "id": ["a"]}, {"id": ["a"], "n": ["one"]}],
    ids=" ".join,
)
def test_rows_with_other_columns_or_types_are_refused(tmp_path: Path, rows: dict[str, list[object]]) -> None:
    with pytest.raises(TableError):
        write_table(tmp_path, SCORES, pd.DataFrame(rows))


@pytest.mark.parametrize("columns", [{"crop_id": ["a"]}, {"crop_id": ["a"], "split": [1]}], ids=" ".join)
def test_a_step_that_reads_a_table_with_other_columns_stops_with_one_line(store: Store, columns: dict[str, list[object]]) -> None:
    def build(space: Workspace) -> StepOutput:
        pq.write_table(pa.table(columns), space.out / SPLITS.file)
        return StepOutput(Counts(kept=1))

    artifact = store.make(Step("splits", version=1), build=build)
    with pytest.raises(TableError) as caught:
        store.table(artifact, SPLITS)
    assert "\n" not in str(caught.value)


def test_no_step_declares_two_tables_of_one_file() -> None:
    for tables in TABLES.values():
        assert len({table.file for table in tables}) == len(tables)
