"""The command line: help that teaches, and one line with an exit code for every mistake of a user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from animl_pipeline.cli.console import LONGEST, one_line
from animl_pipeline.config import load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import SettingsError
from tests.support.endpoint_process import until
from tests.support.paths import ROOT
from tests.support.tiny_project import write_island
from tests.support.web_server import served


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "animl_pipeline.cli.main", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "160"} | variables, timeout=120, check=False)


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
    plan = write_island(tmp_path, locations=1, each=1)
    plan.write_text(plan.read_text(encoding="utf-8").replace("epochs:", "epoch:"), encoding="utf-8")
    done = run("plan", "check", plan)
    assert done.returncode == 2
    assert "the key 'train.epoch' is not known; here a plan has: backbone, weights" in done.stderr


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    plan = write_island(tmp_path / "[bold]:fox:", locations=1, each=1)
    plan.write_text(plan.read_text(encoding="utf-8").replace("    bird:", "    '[/red]bird':"), encoding="utf-8")
    done = run("plan", "check", plan)
    assert done.returncode == 0, done.stderr
    assert str(plan) in done.stdout
    assert "[/red]bird: bird" in done.stdout


def test_a_plan_that_is_not_there_and_a_setting_that_does_not_fit_are_one_line_each(tmp_path: Path) -> None:
    assert run("plan", "check", tmp_path / "none.yaml").stderr.startswith(f"animl-pipeline: expected a plan at {tmp_path / 'none.yaml'}, found none")
    done = run("doctor", ANIML_WORKERS="many")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "ANIML_WORKERS does not fit" in done.stderr


def test_a_local_sagemaker_without_a_folder_or_a_bucket_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run("sagemaker-local", "--folder", tmp_path / "file")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "cannot keep its state in" in done.stderr
    done = run("sagemaker-local", "--folder", tmp_path / "state", "--bucket", "No Bucket")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("found 'No Bucket'")


def test_predict_without_a_image_or_a_model_says_what_is_missing(tmp_path: Path) -> None:
    plan = write_island(tmp_path, locations=1, each=1)
    image = next((tmp_path / "images").rglob("*.jpg"))
    (tmp_path / "text.jpg").write_text("no picture")
    store = {"ANIML_STORE": str(tmp_path / "store")}
    assert "expected a picture at" in run("predict", tmp_path / "none.jpg", "--plan", plan, **store).stderr
    assert "not a picture that decodes" in run("predict", tmp_path / "text.jpg", "--plan", plan, **store).stderr
    assert "--box: expected ymin,xmin,ymax,xmax" in run("predict", image, "--plan", plan, "--box", "1,2", **store).stderr
    assert "run `animl-pipeline retrain PLAN` first" in run("predict", image, "--plan", plan, "--box", "0,0,1,1", **store).stderr


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_a_command_that_is_told_to_stop_ends_soon_with_one_line_and_leaves_no_process(tmp_path: Path, told: signal.Signals) -> None:
    plan = write_island(tmp_path, locations=2, each=1)
    with served({}) as site:
        site.gate_after = 0  # the step 'images' waits for ever
        plan.write_text(plan.read_text(encoding="utf-8").replace(str(tmp_path / "images"), site.address), encoding="utf-8")
        variables = {"ANIML_STORE": str(tmp_path / "store"), "ANIML_TIMEOUT_S": "300", "PREFECT_HOME": str(tmp_path / "prefect")}
        line = [sys.executable, "-m", "animl_pipeline.cli.main", "retrain", str(plan)]
        with subprocess.Popen(line, cwd=ROOT, env=os.environ | variables, stderr=subprocess.PIPE, text=True, start_new_session=True) as command:
            try:
                assert site.at_gate.wait(120)
                started = children(command.pid)
                assert started  # Prefect's server is one
                command.send_signal(told)
                _, said = command.communicate(timeout=20)
            finally:
                command.kill()
                site.gate.set()
    if told == signal.SIGKILL:
        assert command.returncode == -signal.SIGKILL
    else:
        assert command.returncode == 128 + told
        assert said.splitlines()[-1].startswith("animl-pipeline: stopped; what was made is kept")
        assert "Traceback" not in said
    assert gone(started, within_s=30)


def test_a_terminals_ctrl_c_while_prefects_server_starts_is_one_line(tmp_path: Path) -> None:
    plan = write_island(tmp_path, locations=1, each=1)
    variables = {"ANIML_STORE": str(tmp_path / "store"), "PREFECT_HOME": str(tmp_path / "prefect")}
    line = [sys.executable, "-m", "animl_pipeline.cli.main", "retrain", str(plan)]
    with subprocess.Popen(line, cwd=ROOT, env=os.environ | variables, stderr=subprocess.PIPE, text=True, start_new_session=True) as command:
        try:
            until(lambda: command.poll() is not None or children(command.pid), "Prefect's server is started", seconds=120)
            started = children(command.pid)
            os.killpg(command.pid, signal.SIGINT)  # a terminal tells all of its foreground group
            _, said = command.communicate(timeout=20)
        finally:
            command.kill()
    assert command.returncode == 128 + signal.SIGINT
    assert said == "animl-pipeline: stopped; what was made is kept, run the same command again to go on\n"
    assert started
    assert gone(started, within_s=30)


def children(pid: int) -> list[int]:
    """A process's children."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def gone(pids: list[int], within_s: float) -> bool:
    """Whether all of some processes end in time."""
    deadline = time.monotonic() + within_s
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "nowhere"])
def test_a_prefect_server_that_cannot_be_reached_is_one_line_with_its_variable(tmp_path: Path, address: str) -> None:
    plan = write_island(tmp_path, locations=1, each=1)
    done = run("retrain", plan, PREFECT_API_URL=address, ANIML_STORE=str(tmp_path / "store"), PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"animl-pipeline: expected a Prefect server at {address} (PREFECT_API_URL), reached none")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["retrain", "notify"])
def test_a_prefect_servers_address_without_api_is_said_to_be_that_and_its_password_is_not_shown(
    tmp_path: Path, prefect_address: str, command: str
) -> None:
    plan = write_island(tmp_path, locations=1, each=1)
    bare = prefect_address.removesuffix("/api")
    address = bare.replace("://", "://ranger:owl@")
    done = run(command, plan, PREFECT_API_URL=address, ANIML_STORE=str(tmp_path / "store"), PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"; the address of a Prefect server ends in /api, such as {prefect_address}")
    assert f" {bare}" in done.stderr
    assert "owl" not in done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("RUNNER=dusk", "expected threads, dask, dask:<address>, ray or ray:<address>, found 'dusk'"),
        ("STAGE=Dev", "expected small letters, digits and hyphens, such as dev, found 'Dev'"),
        (
            "PICTURE_URL=https://ranger:owl@animl.camera/app",
            "expected an http:// or https:// address that holds {image}, found 'https://animl.camera/…'",
        ),
        ("NOTIFY=Slack", "expected a Prefect block as <type>/<name>, such as slack-webhook/rangers, found 'Slack'"),
        ("NOTIFY=https://hooks.slack.com/services/T0/owl", "slack-webhook/rangers, found 'https://hooks.slack.com/…'"),
        ("NOTIFY=hooks.slack.com/services/T0/owl", "slack-webhook/rangers, found 'hooks.slack.com/…'"),
        ("NOTIFY=slack://owl/T0", "slack-webhook/rangers, found 'slack://…'"),
        ("NOTIFY=smtp://ranger:owl/@host", "slack-webhook/rangers, found '…'"),
    ],
)
def test_a_setting_that_does_not_fit_says_in_words_what_is_expected_and_shows_no_secret(
    monkeypatch: pytest.MonkeyPatch, value: str, said: str
) -> None:
    name, _, given = value.partition("=")
    monkeypatch.setenv(f"ANIML_{name}", given)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"the environment variable ANIML_{name} does not fit: expected ")
    assert str(caught.value).endswith(said)
    assert "owl" not in str(caught.value)


def test_what_stands_in_an_export_cannot_break_the_line(tmp_path: Path) -> None:
    assert "\\x1b" in one_line("a\x1b[31m\nb")
    assert len(one_line("x" * 10_000)) <= LONGEST
    done = run("plan", "check", tmp_path / "no\nplan.yaml")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_traceback_comes_only_with_debug(tmp_path: Path) -> None:
    assert "Traceback" not in run("plan", "check", tmp_path / "none.yaml").stderr
    assert "Traceback" in run("--debug", "plan", "check", tmp_path / "none.yaml").stderr


def test_a_ctrl_c_while_the_command_is_still_loading_ends_it_without_a_traceback() -> None:
    impatient = """
import os, signal, sys
class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == "animl_pipeline.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Impatient())
from animl_pipeline.cli.start import main
main()
"""
    done = subprocess.run([sys.executable, "-c", impatient], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
