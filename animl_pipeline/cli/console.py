"""Output for a person at a terminal: progress bars while steps run, log lines, tables. Plain text if it is not a terminal."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from animl_pipeline.core import progress

PLAIN_WIDTH = 200
"""Columns of tables that do not go to a terminal, unless COLUMNS is set: a pager or an editor folds lines by itself."""


class WordWrapConsole(Console):
    """A console that wraps text in a terminal between words. A long word, such as a path, stays in one piece."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print as rich does. ``soft_wrap=True`` leaves a line as it is, such as a command to copy."""
        if soft_wrap is None and self.is_terminal and len(objects) == 1 and isinstance(objects[0], str):
            objects = (wrap_words(objects[0], self.width),)
        super().print(*objects, soft_wrap=soft_wrap, **options)


def wrap_words(text: str, width: int) -> str:
    """``text`` in lines of at most ``width`` columns, except for longer words. A line's continuation is indented a little more than it."""
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" ")))
        more = f"{indent}  " if indent else ""
        lines += textwrap.wrap(line, width, subsequent_indent=more, break_long_words=False, break_on_hyphens=False, replace_whitespace=False) or [
            line
        ]
    return "\n".join(lines)


_width = None if sys.stdout.isatty() else shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
out = WordWrapConsole(width=_width, highlight=False, soft_wrap=True, markup=False, emoji=False)  # names and paths may hold [ and :
err = WordWrapConsole(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
MAX_ERROR_LENGTH = 3000
"""Characters of an error: it may name all errors of a plan, or quote an export, where a text may have any length."""


@contextmanager
def show_progress(*, debug: bool = False) -> Iterator[None]:
    """Show the steps' progress and log lines while the block runs: with bars in a terminal, as plain lines elsewhere."""
    logger = logging.getLogger("animl_pipeline")
    level, handler = logger.level, _handler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        if err.is_terminal:
            with _bars() as bars:
                progress.set_listener(_BarListener(bars))
                yield
        else:
            yield
    finally:
        progress.set_listener(None)
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
    """Items per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed and task.speed >= 2 else "", style="progress.data.speed")


class _BarListener:
    """One bar for each thing under way. It disappears when the thing is done."""

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
    """``text`` as one line of at most ``MAX_ERROR_LENGTH`` characters, with line ends and other unprintable characters escaped."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return line if len(line) <= MAX_ERROR_LENGTH else f"{line[: MAX_ERROR_LENGTH - 1]}…"


def format_bytes(n: float) -> str:
    """A number of bytes with three digits and a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def show_probabilities(probabilities: dict[str, float], thresholds: Mapping[str, float] | None = None) -> None:
    """A model's answer, the likeliest class first, beside the classes' thresholds if there are any."""
    for class_id, p in sorted(probabilities.items(), key=lambda item: -item[1]):
        threshold = f" (threshold {thresholds[class_id]:.3f})" if thresholds and class_id in thresholds else ""
        out.print(f"  {class_id:<16} {p:6.3f}{threshold} {'█' * round(p * 12)}".rstrip())


def print_json(content: object) -> None:
    """Print ``content`` as JSON, for programs."""
    out.print(json.dumps(content, indent=1, ensure_ascii=False), soft_wrap=True)
