"""Run `animl-pipeline` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

COMMAND = [sys.executable, "-m", "animl_pipeline.cli"]


def run_command(*arguments: str | Path, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """The finished command, with its output. ``variables`` are set in its environment."""
    environment = os.environ | {"COLUMNS": "160"} | variables
    line = [*COMMAND, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=timeout, check=False)
