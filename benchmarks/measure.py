"""What benchmarks share: work measured in processes of its own, a table, and the last line that says whether the aim is met.

CPU seconds are user and system time of a process and its children (getrusage), peak memory is the largest resident set
of any of them. Wall times are not compared: other work on the machine would change them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rich.console import Console
from rich.table import Table

out = Console()


class Measured(NamedTuple):
    """What a run took, and what it printed as its last line (JSON)."""

    cpu_s: float
    peak_mb: float
    said: Any


def measured(script: Path, *arguments: str, env: dict[str, str] | None = None) -> Measured:
    """Run a script with this Python in a process of its own; its last line of output, JSON, comes back with its CPU seconds and peak memory.

    Raises:
        SystemExit: the script failed; its output is shown.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # the child of a child: the peak of RUSAGE_CHILDREN never falls, so each run needs a parent that has had no other
    done = subprocess.run([sys.executable, "-c", _WRAPPER, str(script), *arguments], capture_output=True, text=True, check=False, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{script.name} {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    lines = done.stdout.splitlines()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(cpu, float(lines[-1]), json.loads(lines[-2]) if len(lines) > 1 else None)


_WRAPPER = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; floats with three significant digits."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
    out.print(table)


def conclude(name: str, *, figure: str, aim: str, met: bool) -> NoReturn:
    """Print the last line, ``NAME: figure (aim)``, and end: 0 where the aim is met, else 1."""
    out.print(f"{name}: {figure} ({aim}){'' if met else ' MISSED'}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(0 if met else 1)
