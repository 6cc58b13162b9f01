"""The command line: help that explains, and one line with an exit code for every mistake of a user."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from animl_pipeline.cli.console import MAX_ERROR_LENGTH, one_line
from animl_pipeline.cli.options import settings_with
from animl_pipeline.config import load_plan
from animl_pipeline.core.errors import SettingsError
from tests.support.command_line import run_command
from tests.support.paths import ROOT
from tests.support.tiny_project import write_project


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command wrote."""
    (line,) = done.stderr.strip().splitlines()
    return line


def test_help_names_every_command_and_what_it_is_for() -> None:
    shown = run_command("--help").stdout
    for command in ("retrain", "release", "rollback", "predict", "demo", "doctor", "plan", "sagemaker-local"):
        assert command in shown
    assert "Begin with: animl-pipeline demo" in shown


@pytest.mark.parametrize("plan", sorted((ROOT / "deployments" / "plans").glob("*.yaml")), ids=lambda p: p.stem)
def test_plan_check_says_what_a_shipped_plan_would_do(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "megadetector.json").write_text('{"images": []}')  # the sample's results file is made by the demo
    done = run_command("plan", "check", plan, "--data", tmp_path)
    checked = load_plan(plan)
    elsewhere = all("://" in s.export for s in checked.sources)  # the sample's export is made by the demo
    assert (done.returncode, done.stderr == "") == (0 if elsewhere else 1, elsewhere), done.stderr
    assert checked.endpoint_name() in done.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_character_that_the_terminal_lacks_ends_no_command(tmp_path: Path, encoding: str) -> None:
    done = run_command("plan", "check", tmp_path / "キツネ.yaml", PYTHONIOENCODING=encoding)
    assert done.returncode not in {0, 70}
    assert "\\u30ad" in error_line(done)


def test_closed_streams_end_no_command_with_a_traceback() -> None:
    plan = ROOT / "deployments" / "plans" / "channel-islands-lila.yaml"
    line = f"{sys.executable} -m animl_pipeline.cli plan check {plan}"
    for closed in (">&-", ">&- 2>&- <&-", "| true"):
        done = subprocess.run(["/bin/bash", "-c", f"{line} {closed}"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, ""), closed


def test_a_plan_is_found_by_its_name_from_any_folder(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "animl_pipeline.cli", "plan", "check", "channel-islands-lila"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "channel-islands-lila is a plan for channel-islands-lila" in done.stdout


@pytest.mark.parametrize(
    ("text", "fault"),
    [("model: a\nlabels: {classes: {a: [a], b: [b]}}\n", "'sources'"), ("[1, 2]", "list"), ("model: [", "line 1")],
)
def test_a_wrong_plan_is_one_line_and_exit_code_2(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    done = run_command("plan", "check", tmp_path / "plan.yaml")
    assert done.returncode == 2
    assert fault in error_line(done)


def test_a_wrong_key_is_named_with_those_that_exist(tmp_path: Path) -> None:
    plan = write_project(tmp_path, locations=1, each=1)
    plan.write_text(plan.read_text(encoding="utf-8").replace("epochs:", "epoch:"), encoding="utf-8")
    done = run_command("plan", "check", plan)
    assert done.returncode == 2
    assert "train.epoch" in error_line(done)
    assert "backbone, weights" in error_line(done)


def test_names_with_markup_are_printed_unchanged(tmp_path: Path) -> None:
    plan = write_project(tmp_path / "[bold]:fox:", locations=1, each=1)
    plan.write_text(plan.read_text(encoding="utf-8").replace("    bird:", "    '[/red]bird':"), encoding="utf-8")
    done = run_command("plan", "check", plan)
    assert done.returncode == 0, done.stderr
    assert str(plan) in done.stdout
    assert "[/red]bird: bird" in done.stdout


def test_a_missing_plan_and_a_wrong_setting_are_one_line_each(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in error_line(run_command("plan", "check", tmp_path / "none.yaml"))
    done = run_command("doctor", ANIML_WORKERS="many")
    assert done.returncode == 2
    assert "ANIML_WORKERS" in error_line(done)


def test_a_store_that_is_neither_a_folder_nor_a_bucket_is_refused() -> None:
    with pytest.raises(SettingsError) as refused:
        settings_with("https://bucket/prefix")
    assert refused.value.code == "invalid_option"


def test_a_local_sagemaker_without_a_folder_or_a_bucket_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run_command("sagemaker-local", "--folder", tmp_path / "file")
    assert done.returncode == 2
    assert str(tmp_path / "file") in error_line(done)
    done = run_command("sagemaker-local", "--folder", tmp_path / "state", "--bucket", "No Bucket")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("found 'No Bucket'")


def test_predict_says_whether_the_image_the_box_or_the_model_is_missing(tmp_path: Path) -> None:
    plan = write_project(tmp_path, locations=1, each=1)
    image = next((tmp_path / "images").rglob("*.jpg"))
    (tmp_path / "text.jpg").write_text("not an image")
    store = ["--store", tmp_path / "store", "--plan", plan]
    assert f"no image at {tmp_path / 'none.jpg'}" in run_command("predict", tmp_path / "none.jpg", *store).stderr
    assert str(tmp_path / "text.jpg") in run_command("predict", tmp_path / "text.jpg", *store).stderr
    assert "--box" in run_command("predict", image, "--box", "1,2", *store).stderr
    assert "animl-pipeline retrain" in run_command("predict", image, "--box", "0,0,1,1", *store).stderr
    for asked, option in ((image.parent, ["--box", "0,0,1,1"]), (image, ["--smooth"]), (image, ["--results", "md.json"]), (image, ["--out", "o"])):
        refused = run_command("predict", asked, *option, *store)
        assert (refused.returncode, f"{option[0]}: expected" in error_line(refused)) == (2, True)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/api", "nowhere"])
def test_a_prefect_server_that_cannot_be_reached_is_one_line_with_its_variable(tmp_path: Path, address: str) -> None:
    plan = write_project(tmp_path, locations=1, each=1)
    done = run_command("retrain", plan, "--store", tmp_path / "store", PREFECT_API_URL=address, PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 2
    assert f"{address} (PREFECT_API_URL)" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["retrain", "notify"])
def test_a_prefect_servers_address_without_api_is_explained_without_its_password(tmp_path: Path, prefect_address: str, command: str) -> None:
    plan = write_project(tmp_path, locations=1, each=1)
    bare = prefect_address.removesuffix("/api")
    address = bare.replace("://", "://ranger:owl@")
    done = run_command(command, plan, PREFECT_API_URL=address, ANIML_STORE=str(tmp_path / "store"), PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"ends in /api, such as {prefect_address}")
    assert f" {bare}" in done.stderr
    assert "owl" not in done.stderr


def test_text_from_an_export_cannot_break_the_error_line(tmp_path: Path) -> None:
    assert "\\x1b" in one_line("a\x1b[31m\nb")
    assert len(one_line("x" * 10_000)) <= MAX_ERROR_LENGTH
    error_line(run_command("plan", "check", tmp_path / "no\nplan.yaml"))


def test_a_traceback_comes_only_with_debug(tmp_path: Path) -> None:
    assert "Traceback" not in run_command("plan", "check", tmp_path / "none.yaml").stderr
    assert "Traceback" in run_command("--debug", "plan", "check", tmp_path / "none.yaml").stderr


def test_a_ctrl_c_while_the_command_is_still_loading_ends_it_without_a_traceback() -> None:
    interrupted_import = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "animl_pipeline.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from animl_pipeline.cli.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", interrupted_import], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
