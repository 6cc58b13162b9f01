"""What a command does not load before it answers: benchmarks/command_start.py has the times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from animl_pipeline.config.settings import DEPLOYMENTS
from tests.support.paths import ROOT

SAMPLE = DEPLOYMENTS / "plans" / "sample.yaml"
PROGRAM = """
import atexit, sys
slow = {"torch", "timm", "lightning", "pandas", "prefect", "sklearn", "matplotlib", "boto3", "onnxruntime"}
atexit.register(lambda: print("loaded:", *sorted(slow & set(sys.modules))))
from animl_pipeline.cli.__main__ import main
main()
"""


def wrong_backbone(folder: Path) -> str:
    data = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    data["train"]["backbone"] = "tf_efficientnet_litte0"
    data["detections"] = {"source": "annotations"}
    (folder / "plan.yaml").write_text(yaml.safe_dump(data))
    return str(folder / "plan.yaml")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-h"], 0),
        (["plan", "check", str(DEPLOYMENTS / "plans" / "channel-islands-lila.yaml")], 0),
        (["retrain", "no-such-plan"], 2),
        (["retrain", "WRONG"], 1),
        (["release", "no-such-plan"], 2),
    ],
    ids=str,
)
def test_an_answer_that_needs_no_data_loads_no_slow_library(tmp_path: Path, words: list[str], status: int) -> None:
    words = [wrong_backbone(tmp_path) if word == "WRONG" else word for word in words]
    environment = os.environ | {"ANIML_STORE": str(tmp_path / "store")}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]
