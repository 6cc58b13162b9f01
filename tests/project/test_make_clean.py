"""`make clean` removes what the demo, the docs and the tests made, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.paths import ROOT

MADE = ("runs/demo/store/steps/labels/1", "runs/site", ".pytest_cache", ".mypy_cache", ".ruff_cache")
OF_USERS = ("runs/store/reports/isle", "runs/store/index/test_locations", "runs/sagemaker", "runs/recipes", "deployments/plans", "data")


def test_clean_keeps_the_users_store_and_whatever_else_lies_in_runs(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder in (*MADE, *OF_USERS):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file.json").write_text("{}")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)  # noqa: S607 - make of the PATH
    assert [f for f in OF_USERS if not (tmp_path / f / "file.json").exists()] == []
    assert [f for f in MADE if (tmp_path / f).exists()] == []
