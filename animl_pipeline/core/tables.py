"""The Parquet tables that pass between steps: how a table's columns are declared, written and checked.

The tables themselves are declared in :mod:`animl_pipeline.core.table_schemas`. A table with other columns than declared is an
error of one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from animl_pipeline.core.errors import TableError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Column(NamedTuple):
    """One column: its pyarrow type by name, what it holds, and its unit ("" if it has none)."""

    name: str
    type: str
    description: str
    unit: str = ""


class Table(NamedTuple):
    """One table of a step.

    Attributes:
        file: the file's name in the step's folder.
        description: what one row is.
        columns: all columns, in order.
        class_columns: prefix of further columns, one for each class of the model, such as ``p_``; "" for none.
        class_type: pyarrow type of those.
    """

    file: str
    description: str
    columns: tuple[Column, ...]
    class_columns: str = ""
    class_type: str = "float"

    def names(self) -> list[str]:
        """The declared column names, in order."""
        return [c.name for c in self.columns]

    def schema(self, extra: tuple[str, ...] = ()) -> pa.Schema:
        """The pyarrow schema; ``extra`` names the class columns of one file."""
        import pyarrow as pa

        fields = [pa.field(c.name, _arrow_type(c.type)) for c in self.columns]
        return pa.schema([*fields, *(pa.field(name, _arrow_type(self.class_type)) for name in extra)])


def write_table(folder: Path, table: Table, rows: pd.DataFrame | pa.Table) -> None:
    """Write rows as the table's Parquet file in ``folder``: the same bytes for the same rows.

    Raises:
        TableError: the rows do not have the declared columns or types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
    if not len(arrow) and not isinstance(rows, pa.Table):  # without rows pandas does not know the types
        arrow = pa.table({name: pa.nulls(0) for name in arrow.column_names})
    names = arrow.column_names
    _check_names(table, names, "made")
    try:
        typed = arrow.cast(table.schema(_class_columns(table, names)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as e:
        raise TableError(f"{table.file}: a column does not have its declared type ({str(e).splitlines()[0]})") from e
    pq.write_table(typed, folder / table.file, compression="zstd")


def check_schema(path: Path, table: Table) -> None:
    """Check that a Parquet file has a table's declared columns and types.

    Raises:
        TableError: it has others.
    """
    import pyarrow.parquet as pq

    found = pq.read_schema(path)
    _check_names(table, found.names, f"in {path}")
    declared = table.schema(_class_columns(table, found.names))
    if wrong := [f"{a.name} as {a.type}, expected {b.type}" for a, b in zip(found, declared, strict=True) if a.type != b.type]:
        raise TableError(f"{table.file}: expected the declared types, found {wrong[0]} in {path}; run the step again with an empty store")


def write_parquet(path: Path, rows: pd.DataFrame | pa.Table) -> None:
    """Write rows as Parquet: the same bytes for the same rows. Text is stored as pyarrow's ``string``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
    plain = pa.schema([pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in arrow.schema])
    pq.write_table(arrow.cast(plain), path, compression="zstd")


def _check_names(table: Table, names: list[str], where: str) -> None:
    declared = table.names()
    extra = list(_class_columns(table, names))
    if names != [*declared, *extra]:
        missing = [n for n in declared if n not in names]
        unknown = [n for n in names if n not in declared and n not in extra]
        said = ", ".join(filter(None, [f"missing {', '.join(missing)}" if missing else "", f"unknown {', '.join(unknown)}" if unknown else ""]))
        raise TableError(f"{table.file}: expected the columns {', '.join(declared)}; found {', '.join(names)} {where} ({said or 'another order'})")


def _class_columns(table: Table, names: list[str]) -> tuple[str, ...]:
    declared = set(table.names())
    return tuple(n for n in names if table.class_columns and n.startswith(table.class_columns) and n not in declared)


def _arrow_type(name: str) -> pa.DataType:
    import pyarrow as pa

    return pa.type_for_alias(name)
