"""Tables in the terminal: cells wrap between words, and in a narrow terminal the less important columns are left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.table import Table

from animl_pipeline.cli import console
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.evaluation_results import Report

GAP = 2
"""Spaces between two columns."""
LONGEST_WORD = 30
"""A longer word, such as a path, is cut where its column ends."""
Row = Sequence[str]


def print_table(title: str | None, columns: Row, rows: Sequence[Row], right: Collection[str] = (), less_important: Sequence[str] = ()) -> None:
    """Print a plain table that fits the terminal. Columns without any text are left out, too. What cannot fit is a block of lines for each row.

    ``rows``: the cells. A row that begins with "total" is bold. ``right``: columns of numbers, aligned to the right. ``less_important``:
    columns that a narrow terminal does without, the least important first. A line below the table names them.
    """
    shown = [c for i, c in enumerate(columns) if not rows or any(row[i] for row in rows)]
    left_out = []
    for name in less_important:
        if _least_width(shown, columns, rows) <= console.out.width:
            break
        if name in shown:
            shown.remove(name)
            left_out.append(name)
    if _least_width(shown, columns, rows) > console.out.width:
        _print_blocks(title, columns, rows)
        return
    widths = _fit(shown, columns, rows, console.out.width)
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, GAP, 0, 0), collapse_padding=True)
    for name in shown:
        table.add_column(name, justify="right" if name in right else "left", width=widths[name], overflow="fold")
    for row in rows:
        table.add_row(*(row[columns.index(name)] for name in shown), style="bold" if row[0] == "total" else None)
    console.out.print(table)
    if left_out:
        console.out.print(f"not shown in this narrow terminal: {', '.join(left_out)}")


def _print_blocks(title: str | None, columns: Row, rows: Sequence[Row]) -> None:
    if title:
        console.out.print(title, style="italic")
    for row in rows:
        console.out.print(row[0], style="bold")
        for name, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                console.out.print(f"  {name}: {cell}")


def _least_width(shown: Row, columns: Row, rows: Sequence[Row]) -> int:
    """The width below which words would be cut."""
    return sum(_longest_word(name, columns, rows) for name in shown) + GAP * (len(shown) - 1)


def _longest_word(name: str, columns: Row, rows: Sequence[Row]) -> int:
    words = [word for cell in _cells(name, columns, rows) for word in cell.split()]
    return min(LONGEST_WORD, max(map(cell_len, words), default=1))


def _cells(name: str, columns: Row, rows: Sequence[Row]) -> list[str]:
    return [name, *(row[columns.index(name)] for row in rows)]


def _fit(shown: Row, columns: Row, rows: Sequence[Row], width: int) -> dict[str, int]:
    """A width for each column: that of its longest cell where all fit; otherwise the widest ones get narrower, down to their longest word."""
    widths = {name: max(1, *(cell_len(line) for cell in _cells(name, columns, rows) for line in cell.split("\n"))) for name in shown}
    least = {name: min(widths[name], _longest_word(name, columns, rows)) for name in shown}
    surplus = sum(widths.values()) + GAP * (len(shown) - 1) - width
    while surplus > 0:
        wrappable = [name for name in shown if widths[name] > least[name]]
        if not wrappable:
            break
        widest = max(wrappable, key=lambda name: widths[name])
        widths[widest] -= 1
        surplus -= 1
    return widths


def show_step_counts(step_counts: Sequence[tuple[str, Counts]]) -> None:
    """What each step kept and dropped, a step a row."""
    rows = [(step, f"{c.kept:,}", c.unit, f"{sum(c.dropped.values()):,}", c.drop_reasons()) for step, c in step_counts]
    print_table("What each step kept and dropped", ("step", "kept", "of what", "dropped", "why"), rows, right=("kept", "dropped"))


def show_scores(report: Report) -> None:
    """The classes' scores on the test locations: on crops, and the F1 as in production where that was scored."""
    numbers = ("examples", "locations", "precision", "recall", "F1", "AP", "F1 in production")
    production = {c.id: c.f1 for c in report.metrics.production.classes if c.sequences} if report.metrics.production else {}
    rows = [
        (
            c.id, str(c.examples), str(c.locations), f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", _rounded(c.average_precision),
            _rounded(production[c.id]) if c.id in production else "",
        )
        for c in report.metrics.classes
    ]  # fmt: skip
    title = f"{report.model} {report.version} on crops of the test locations"
    print_table(title, ("class", *numbers), rows, right=numbers, less_important=("AP", "locations", "examples"))
    console.out.print(report.headline)


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
