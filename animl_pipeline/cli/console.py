"""What a person sees in a terminal: bars while steps run, one line a fact, tables at the end; plain text elsewhere."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from animl_pipeline.core import progress
from animl_pipeline.core.records import Counts, Report

PLAIN_WIDTH = 200
"""Columns of tables that do not go to a terminal, unless COLUMNS says otherwise: what reads them folds lines by itself."""
_width = None if sys.stdout.isatty() else shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
out = Console(width=_width, highlight=False, soft_wrap=True, markup=False, emoji=False)  # names and paths may hold [ and :
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
LONGEST = 1200
"""Characters of an error's line: what stands in an export may be of any length."""


@contextmanager
def watched(*, debug: bool = False) -> Iterator[None]:
    """Show progress and the rooms' facts while the block runs: bars in a terminal, plain lines elsewhere."""
    logger = logging.getLogger("animl_pipeline")
    level, handler = logger.level, _handler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        if err.is_terminal:
            with _bars() as bars:
                progress.listen(_Listener(bars))
                yield
        else:
            yield
    finally:
        progress.listen(None)
        logger.removeHandler(handler)
        logger.setLevel(level)


def _handler() -> logging.Handler:
    if err.is_terminal:
        return RichHandler(console=err, show_path=False, show_level=False, log_time_format="%H:%M:%S", markup=False)
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return plain


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, transient=True, refresh_per_second=4)


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed and task.speed >= 2 else "", style="progress.data.speed")


class _Listener:
    """One bar for each thing under way; it goes when the thing is done."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.known: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.known:
            self.known[what] = self.bars.add_task(what, total=total)
        self.bars.update(self.known[what], completed=done, total=total)
        if done >= total:
            self.bars.remove_task(self.known.pop(what))


def one_line(text: str) -> str:
    """``text`` as one line of at most ``LONGEST`` characters, its line ends and other unprintable characters escaped."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def in_bytes(n: float) -> str:
    """A number of bytes with three digits and a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def show_story(story: Sequence[tuple[str, Counts]]) -> None:
    """The totals kept and dropped, a step a row."""
    table = Table(title="What each step kept and dropped", title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("step")
    table.add_column("kept", justify="right")
    table.add_column("of what")
    table.add_column("dropped", justify="right")
    table.add_column("why", overflow="fold")
    for step, counts in story:
        why = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(counts.dropped.items()))
        table.add_row(step, f"{counts.kept:,}", counts.unit, f"{sum(counts.dropped.values()):,}", why)
    out.print(table)


def show_scores(report: Report) -> None:
    """The classes' scores on the test places."""
    table = Table(title=f"{report.model} {report.version} on the test places", title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in ("class", "examples", "locations", "precision", "recall", "F1", "AP"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for c in report.metrics.classes:
        ap = "-" if c.average_precision is None else f"{c.average_precision:.3f}"
        table.add_row(c.id, str(c.examples), str(c.locations), f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", ap)
    out.print(table)
    out.print(report.headline)


def show_answer(answer: dict[str, float]) -> None:
    """An endpoint's answer, likeliest first."""
    for class_id, p in sorted(answer.items(), key=lambda item: -item[1]):
        out.print(f"  {class_id:<16} {p:6.3f} {'█' * round(p * 30)}")
