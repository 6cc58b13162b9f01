"""The demo and the doctor, as the README says to run them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.command_line import run_command


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_shows_an_answer_a_report_and_the_counts_and_reuses_everything_the_second_time(tmp_path: Path) -> None:
    home = {"PREFECT_HOME": str(tmp_path / "prefect")}
    first = run_command("demo", "--folder", tmp_path / "demo", timeout=600, **home)
    assert first.returncode == 0, first.stderr
    assert re.search(r"^the endpoint's answer for ", first.stdout, re.MULTILINE)
    assert re.search(r"^  (fox|bird|skunk|rodent|lizard) +0\.\d{3}", first.stdout, re.MULTILINE)
    assert re.search(r"^images island +\d+ +images +\d+ +.*broken", first.stdout, re.MULTILINE)
    report = re.search(r"^report: (.+)$", first.stdout, re.MULTILINE)
    assert report is not None
    assert Path(report[1]).stat().st_size > 50_000
    second = run_command("demo", "--folder", tmp_path / "demo", timeout=600, **home)
    assert second.returncode == 0, second.stderr
    assert "made in" not in second.stderr
    assert len(re.findall(r": cached, ", second.stderr)) == 13
    assert "serves" in second.stdout


def test_the_doctor_finds_every_package_and_says_what_to_change_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    locations = {"HOME": str(tmp_path / "home"), "ANIML_STORE": str(tmp_path / "store"), "ANIML_CACHE": str(tmp_path / "cache")}
    done = run_command("doctor", **locations, PIP_NO_INDEX="1", timeout=180)
    for package in ("torch", "torchvision", "lightning", "timm", "yolox", "ultralytics", "onnxruntime", "prefect"):
        assert re.search(rf"^ok +{package} ", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^ok +store ", done.stdout, re.MULTILINE), done.stdout
    assert not (tmp_path / "store").exists()
    assert list((tmp_path / "store").rglob("*.txt")) == []
    assert "Ultralytics Settings" not in done.stdout + done.stderr
    assert not (tmp_path / "home" / ".config" / "Ultralytics").exists()
    assert "detections.detector" in done.stdout
    assert "train.weights" in done.stdout
