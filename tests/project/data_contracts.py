"""docs/data-contracts.md, made from the table declarations in animl_pipeline/core/table_schemas.py.

``python -m tests.project.data_contracts --write`` writes the page (``make docs-reference``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from animl_pipeline.core.tables import Table
from animl_pipeline.core.tables_of_steps import TABLES
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "data-contracts.md"
TYPES = {"string": "text", "int64": "integer", "double": "float64", "float": "float32", "bool": "true or false"}
START = """\
# Data contracts

Steps pass Parquet tables to each other. This page lists every table with its columns, types and units. It is made from
`animl_pipeline/core/table_schemas.py` by `make docs-reference`; a step that gets a table with other columns stops with one line.

- Boxes are `ymin, xmin, ymax, xmax`, relative to the height and width of the image, from 0 to 1. Only the export's own
  annotations have boxes in pixels.
- Text is empty where a value is unknown; numbers are NaN, or 0 for widths and heights.
- `blob` and `image` are sha256 digests. The store keeps such a file under `blobs/<first two characters>/<digest>`.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([START, *(part for step, tables in TABLES.items() for part in _step(step, tables))])


def _step(step: str, tables: tuple[Table, ...]) -> Iterator[str]:
    yield f"## {step}\n"
    for table in tables:
        yield f"### {table.file}\n\nEach row is {table.description}.\n"
        yield "| column | type | unit | what it holds |\n|---|---|---|---|"
        for column in table.columns:
            yield f"| `{column.name}` | {TYPES[column.type]} | {column.unit} | {_cell(column.description)} |"
        if table.class_columns:
            yield f"| `{table.class_columns}<class>` | {TYPES[table.class_type]} |  | probability of the class, a column for each class |"
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
