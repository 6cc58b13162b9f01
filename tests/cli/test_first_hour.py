"""The first hour as docs/first-hour.md tells it, typed at a terminal of 80 columns in an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.endpoint_process import wait_until
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="expected tmux, found none"),
]


class Terminal:
    """A shell in a terminal of 80 columns and 50 lines, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._socket, self._typed = folder, folder / "tmux", 0
        command = f'PYTHONPATH={ROOT} exec {sys.executable} -m animl_pipeline.cli "$@"\n'
        (folder / "bin").mkdir()
        (folder / "bin" / "animl-pipeline").write_text(f"#!/bin/sh\n{command}", encoding="utf-8")
        (folder / "bin" / "animl-pipeline").chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANIML_", "PREFECT_", "AWS_", "COLUMNS", "LINES"))}
        environment = kept | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PREFECT_HOME": str(folder / "prefect"), "PS1": "$ ", "TERM": "xterm"}
        self._environment = environment | {"OMP_NUM_THREADS": "1"}
        self._tmux("new-session", "-d", "-x", "80", "-y", "50", "bash --norc --noprofile")

    def _tmux(self, *words: str) -> str:
        line = ["tmux", "-S", str(self._socket), *words]
        return subprocess.run(line, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=True).stdout

    def types(self, command: str, minutes: float = 5) -> list[str]:
        """The lines that a command shows. It must end well.

        Args:
            command: what is typed.
            minutes: how long it may take.
        """
        self._typed += 1
        done = self.folder / f"done-{self._typed}"
        self._tmux("send-keys", "clear; tmux clear-history", "Enter")
        self._tmux("send-keys", "-l", f"{command}; echo $? > {done}")
        self._tmux("send-keys", "Enter")
        wait_until(lambda: done.exists() and done.read_text() != "", command, seconds=60 * minutes)
        lines = self._tmux("capture-pane", "-p", "-S", "-2000").splitlines()
        if folder := os.environ.get("FIRST_HOUR"):
            (Path(folder) / f"{self._typed}.txt").write_text("\n".join(lines), encoding="utf-8")
        assert done.read_text().strip() == "0", "\n".join(lines)
        return [line.rstrip() for line in lines if line.strip()]

    def close(self) -> None:
        """End the shell."""
        self._tmux("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.close()


def test_the_demo_and_a_folder_of_ones_own_come_to_a_report(terminal: Terminal, tmp_path: Path) -> None:
    shown = terminal.types("animl-pipeline demo --folder demo", minutes=20)
    assert any(line.startswith("animl-pipeline demo:") for line in shown)
    assert max(map(len, shown)) <= 80
    for advice in ("export ANIML_DATA=", "animl-pipeline versions sample"):
        assert advice in " ".join(shown)
    (tmp_path / "own").mkdir()  # the detector would not find drawn animals, so this export has boxes
    shutil.copy(tmp_path / "demo" / "sample" / "export.json", tmp_path / "own" / "cct.json")
    shutil.copytree(tmp_path / "demo" / "sample" / "images", tmp_path / "own" / "images")
    terminal.types("animl-pipeline plan init own --invasive skunk --min-locations 4 -o isle.yaml")
    plan = yaml.safe_load((tmp_path / "isle.yaml").read_text(encoding="utf-8"))
    assert plan["thresholds"]["invasive"] == ["skunk"]
    terminal.types("animl-pipeline plan check isle")
    terminal.types("animl-pipeline plan preview isle")
    shown = terminal.types("animl-pipeline retrain isle --set epochs=1", minutes=20)
    assert any(line.startswith("report:") for line in shown)
    terminal.types("animl-pipeline versions isle --json > versions.json")
    (version,) = json.loads((tmp_path / "versions.json").read_text(encoding="utf-8"))
    assert version["changes"] == ["train.epochs 1"]  # a trial, which only its version names
    terminal.types(f"animl-pipeline report isle --version {version['version']} > page.txt")
    assert Path((tmp_path / "page.txt").read_text(encoding="utf-8").strip()).is_file()
    left = {p.name for p in tmp_path.iterdir() if not p.name.startswith("done")}
    assert left == {"bin", "demo", "isle.yaml", "own", "page.txt", "prefect", "runs", "tmux", "versions.json"}
