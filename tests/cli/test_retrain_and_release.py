"""The whole pipeline by the command line, in real processes, up to a live endpoint on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command_line import COMMAND
from tests.support.local_aws import local_aws_services
from tests.support.tiny_project import write_plan, write_project

Command = Callable[..., subprocess.CompletedProcess[str]]
STEPS = ["export", "images", "labels", "detections", "crops", "splits", "training", "calibration", "evaluation", "package"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def aws(home: Path) -> Iterator[dict[str, str]]:
    """SageMaker and S3 on this machine, with the models' bucket."""
    with local_aws_services(home / "sagemaker", "models") as variables:
        yield variables


@pytest.fixture(scope="module")
def command(home: Path, aws: dict[str, str]) -> Command:
    """Run animl-pipeline in a process of its own. All commands share a store and Prefect's database."""
    environment = os.environ | aws | {"ANIML_STORE": str(home / "store"), "ANIML_CACHE": str(home / "cache"), "PREFECT_HOME": str(home / "prefect")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "ANIML_PLANS": str(home / "island")}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        line = [*COMMAND, *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=240, check=False)

    return run


@pytest.fixture(scope="module")
def plan(home: Path) -> Path:
    return write_project(home / "island")


@pytest.fixture(scope="module")
def trained(command: Command, plan: Path) -> subprocess.CompletedProcess[str]:
    done = command("retrain", plan)
    assert done.returncode == 0, done.stderr
    return done


def test_retrain_ends_with_a_report_and_shows_what_each_step_kept(trained: subprocess.CompletedProcess[str]) -> None:
    report = re.search(r"^report: (.+)$", trained.stdout, re.MULTILINE)
    assert report is not None
    assert "<html" in Path(report[1]).read_text(encoding="utf-8")
    assert [step for step in STEPS if re.search(rf"^{step}\s", trained.stdout, re.MULTILINE)] == STEPS
    assert "Traceback" not in trained.stderr


def test_a_second_retrain_reuses_every_step(command: Command, plan: Path, trained: subprocess.CompletedProcess[str]) -> None:
    again = command("retrain", plan.stem)  # a plan may be given by its name
    assert again.returncode == 0, again.stderr
    assert re.findall(r"^\S+ (\w+): cached", again.stderr, re.MULTILINE) == STEPS
    assert "made in" not in again.stderr
    assert again.stdout == trained.stdout.replace(f"release {plan}", f"release {plan.stem}")


def test_a_release_answers_as_offline_the_next_changes_nothing_and_a_rollback_goes_back(
    command: Command, home: Path, plan: Path, trained: object
) -> None:
    first = command("release", plan)
    assert first.returncode == 0, first.stderr
    assert re.search(r"tiny-island-concurrency-2 now serves \w+; 4 reference predictions agree within", first.stdout)
    again = command("release", plan)
    assert "served already" in again.stdout
    other = write_plan(home / "island", train={"backbone": "tf_efficientnet_lite0", "weights": "none", "epochs": 1, "head_epochs": 0, "seed": 5})
    assert command("retrain", other).returncode == 0
    assert "now serves" in command("release", other).stdout
    back = command("rollback", other)
    assert back.returncode == 0, back.stderr
    version = re.search(r"now serves (\w+);", first.stdout)
    assert version is not None
    assert version[1] in back.stdout


def test_predict_gives_the_probabilities_of_a_box(command: Command, home: Path, plan: Path, trained: object) -> None:
    image = next((home / "island" / "images").rglob("*.jpg"))
    done = command("predict", image, "--plan", plan, "--box", "0.2,0.2,0.8,0.8")
    assert done.returncode == 0, done.stderr
    assert [c for c in ("fox", "rat", "bird") if c in done.stdout] == ["fox", "rat", "bird"]
    (version,) = [row["version"] for row in json.loads(command("versions", plan, "--json").stdout) if row["next_release"]]
    answer = json.loads(command("predict", image, "--plan", plan, "--box", "0.2,0.2,0.8,0.8", "--version", version, "--json").stdout)
    (animal,) = answer["animals"]
    named = [c for c, p in animal["probabilities"].items() if p >= animal["thresholds"][c]]
    assert (answer["version"], set(animal["labels"]), animal["unknown"]) == (version, set(named), not named)
    assert version in done.stdout
    assert ("unknown" in done.stdout) == animal["unknown"]


def test_an_error_in_a_step_is_one_line_and_loses_nothing(command: Command, home: Path, plan: Path, trained: object) -> None:
    broken = write_plan(home / "island", labels={"classes": {"fox": ["fox"], "rat": ["rat"], "wolf": ["wolf"]}})
    failed = command("retrain", broken)
    assert failed.returncode == 1
    line = failed.stderr.strip().splitlines()[-1]
    assert line.startswith("animl-pipeline: ")
    assert "'wolf'" in line
    assert "Traceback" not in failed.stderr
    write_plan(home / "island")
    assert len(re.findall(r"cached", command("retrain", plan).stderr)) == len(STEPS)
