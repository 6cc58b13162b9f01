"""What a new user types first: --version, Tab, plan init at a terminal, and a SageMaker of their own."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from animl_pipeline.cli.init_plan import _check_invasive
from animl_pipeline.cli.options import overrides_of
from animl_pipeline.config import Overrides
from animl_pipeline.core.errors import PlanError
from animl_pipeline.plan_init import SuggestedPlan
from tests.support.coco_export import Export
from tests.support.command_line import COMMAND
from tests.support.endpoint_process import wait_until
from tests.support.paths import ROOT


@pytest.mark.parametrize(("words", "expected"), [("animl-pipeline ret", "retrain"), ("animl-pipeline retrain sam", "sample")])
def test_the_tab_key_completes_commands_and_names_of_plans(words: str, expected: str) -> None:
    environment = os.environ | {"_ANIML_PIPELINE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    entry = "from animl_pipeline.cli.main import app; app(prog_name='animl-pipeline')"
    done = subprocess.run([sys.executable, "-c", entry], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert expected in done.stdout.split(), done.stderr


def test_the_version_is_that_of_the_package() -> None:
    done = subprocess.run([*COMMAND, "--version"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    (said,) = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert done.stdout.split() == ["animl-pipeline", said]


def test_plan_init_asks_a_terminal_for_invasive_classes_and_writes_them(tmp_path: Path) -> None:
    e = Export()
    for i in range(24):
        e.annotation(e.image(f"cove{i % 6}"), 1 + i % 2, [4, 4, 20, 20])
    e.write(tmp_path)
    typed, terminal = pty.openpty()
    line = [*COMMAND, "plan", "init", "export.json", "--min-annotations", "4", "--min-locations", "2"]
    with (tmp_path / "shown").open("wb") as errors:
        asked = subprocess.Popen(line, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=errors, env=os.environ | {"PYTHONPATH": str(ROOT)})
    os.close(terminal)
    os.write(typed, b"wolf\nRAT\n")  # the first is no class
    shown = bytearray()
    while asked.poll() is None or b"written" not in shown:
        try:
            shown += os.read(typed, 4096)
        except OSError:  # the other side is closed
            break
    assert asked.wait(60) == 0, (tmp_path / "shown").read_text()
    os.close(typed)
    plan = yaml.safe_load((tmp_path / "plan.yaml").read_text(encoding="utf-8"))
    assert plan["thresholds"]["invasive"] == ["Rat"]
    assert plan["gate"]["max_invasive_recall_drop"] == 0.02
    assert shown.count(b"Which of them") == 2


def test_a_name_that_is_no_class_is_refused() -> None:
    with pytest.raises(PlanError) as refused:
        _check_invasive(["goat"], SuggestedPlan((), (), {}, ()))
    assert refused.value.code == "unknown_class"


def test_a_run_takes_changes_of_its_plan_and_refuses_others() -> None:
    assert overrides_of(["epochs=3", "learning_rate=0.01"]) == Overrides(epochs=3, learning_rate=0.01)
    assert overrides_of(["train.epochs=3", "lr=0.01", "labels.max_per_location=9"]) == Overrides(epochs=3, learning_rate=0.01, max_per_location=9)
    assert overrides_of([]) == Overrides()
    for wrong, named in (
        ("epochs", "train.epochs"),
        ("epochs=many", "whole number"),
        ("train.epoch=3", "'train.epochs'"),
        ("epochs=0", "at least 1"),
    ):
        with pytest.raises(PlanError) as refused:
            overrides_of([wrong])
        assert refused.value.code == "invalid_option"
        assert named in str(refused.value)


def test_sagemaker_local_leaves_a_file_to_source_while_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "my folder" / "environment.sh"
    running = subprocess.Popen(
        [*COMMAND, "sagemaker-local", "--folder", str(file.parent)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: file.exists() or running.poll() is not None, "the file is there", seconds=120)
        script = f"source {str(file)!r}; echo $AWS_ENDPOINT_URL_SAGEMAKER"
        done = subprocess.run(["/bin/bash", "-ec", script], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("http://127.0.0.1:")
    finally:
        running.terminate()
        running.wait(60)
    assert not file.exists()
