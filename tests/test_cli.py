"""The command line: help that teaches, and one line with an exit code for every mistake of a user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from animl_pipeline.plan import load_plan
from tests.island import write_island

ROOT = Path(__file__).parents[1]


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=os.environ | variables | {"COLUMNS": "160"}, timeout=120, check=False)


def test_help_names_every_command_and_what_it_is_for() -> None:
    shown = run("--help").stdout
    for command in ("retrain", "release", "rollback", "predict", "demo", "doctor", "plan", "sagemaker-local"):
        assert command in shown
    assert "Begin with: animl-pipeline demo" in shown


@pytest.mark.parametrize("plan", sorted((ROOT / "deployments" / "plans").glob("*.yaml")), ids=lambda p: p.stem)
def test_plan_check_says_what_a_shipped_plan_would_do(plan: Path) -> None:
    done = run("plan", "check", plan)
    assert done.returncode == 0, done.stderr
    assert load_plan(plan).endpoint_name() in done.stdout


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: a\nlabels: {classes: {a: [a], b: [b]}}\n", "the key 'sources' is missing"),
        ("[1, 2]", "expected keys such as model, sources and labels, found list"),
        ("model: [", "is not YAML in line 1"),
    ],
)
def test_a_wrong_plan_is_one_line_and_exit_code_2(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    done = run("plan", "check", tmp_path / "plan.yaml")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert line in done.stderr


def test_a_wrong_key_is_named_with_those_that_fit(tmp_path: Path) -> None:
    plan = write_island(tmp_path, places=1, each=1)
    plan.write_text(plan.read_text(encoding="utf-8").replace("epochs:", "epoch:"), encoding="utf-8")
    done = run("plan", "check", plan)
    assert done.returncode == 2
    assert "the key 'train.epoch' is not known; here a plan has: backbone, weights" in done.stderr


def test_a_plan_that_is_not_there_and_a_setting_that_does_not_fit_are_one_line_each(tmp_path: Path) -> None:
    assert run("plan", "check", tmp_path / "none.yaml").stderr.startswith(f"animl-pipeline: expected a plan at {tmp_path / 'none.yaml'}, found none")
    done = run("doctor", ANIML_WORKERS="many")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "ANIML_WORKERS does not fit" in done.stderr


def test_predict_without_a_picture_or_a_model_says_what_is_missing(tmp_path: Path) -> None:
    plan = write_island(tmp_path, places=1, each=1)
    picture = next((tmp_path / "images").rglob("*.jpg"))
    (tmp_path / "text.jpg").write_text("no picture")
    store = {"ANIML_STORE": str(tmp_path / "store")}
    assert "expected a picture at" in run("predict", tmp_path / "none.jpg", "--plan", plan, **store).stderr
    assert "not a picture that decodes" in run("predict", tmp_path / "text.jpg", "--plan", plan, **store).stderr
    assert "--box: expected ymin,xmin,ymax,xmax" in run("predict", picture, "--plan", plan, "--box", "1,2", **store).stderr
    assert "run `animl-pipeline retrain PLAN` first" in run("predict", picture, "--plan", plan, "--box", "0,0,1,1", **store).stderr


def test_a_traceback_comes_only_with_debug(tmp_path: Path) -> None:
    assert "Traceback" not in run("plan", "check", tmp_path / "none.yaml").stderr
    assert "Traceback" in run("--debug", "plan", "check", tmp_path / "none.yaml").stderr
