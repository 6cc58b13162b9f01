"""What a plan names besides its data, a backbone, weights and a detector, is looked for before anything else is done."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from animl_pipeline.config import DetectionsConfig, Plan, load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError, TrainingError, WeightsError
from animl_pipeline.steps.detections import check_ready as check_detector
from animl_pipeline.steps.training import check_ready as check_start
from tests.support.paths import ROOT
from tests.support.tiny_project import write_island

SAMPLE = ROOT / "deployments" / "plans" / "sample.yaml"
WRONG = {
    "backbone": ("train", "tf_efficientnet_litte0", "train.backbone: expected an architecture of timm", "near it are tf_efficientnet_lite0"),
    "weights": (
        "train",
        "efficientnet-lite9",
        "train.weights: expected efficientnet-lite0-imagenet, timm, none, released or",
        "'efficientnet-lite9'",
    ),
    "detector": ("detections", "megadetector-light", "detections.detector: expected weights at", "a name, perhaps megadetector-lite"),
}


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "animl_pipeline.cli.main", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=os.environ | variables, timeout=120, check=False)


def sample(**changes: dict[str, str]) -> Plan:
    data = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    return Plan.model_validate({key: part | changes.get(key, {}) if isinstance(part, dict) else part for key, part in data.items()})


@pytest.mark.parametrize("key", list(WRONG))
def test_plan_check_refuses_what_there_is_not_in_one_line(tmp_path: Path, key: str) -> None:
    part, wrong, expected, found = WRONG[key]
    data = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    data[part][key] = wrong
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(data))
    done = run("plan", "check", tmp_path / "plan.yaml", "--data", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert expected in done.stderr
    assert found in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("key", list(WRONG))
def test_retrain_refuses_it_before_it_reads_an_export(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.training import check_ready

    part, wrong, expected, found = WRONG[key]
    monkeypatch.setenv("ANIML_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ANIML_DATA", str(tmp_path))
    with pytest.raises((DetectionsError, TrainingError, WeightsError)) as refused:
        check_ready(sample(**{part: {key: wrong}}))
    assert expected in str(refused.value)
    assert found in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_retrain_ends_with_that_line_and_makes_no_step(tmp_path: Path) -> None:
    plan = write_island(tmp_path, locations=1, each=1)
    plan.write_text(plan.read_text(encoding="utf-8").replace("tf_efficientnet_lite0", "tf_efficientnet_litte0"), encoding="utf-8")
    done = run("retrain", plan, ANIML_STORE=str(tmp_path / "store"))
    assert done.returncode == 1
    assert "near it are tf_efficientnet_lite0" in done.stderr
    assert not (tmp_path / "store" / "steps").exists()


def test_a_sound_plan_is_ready_without_torch_and_soon() -> None:
    """A retraining whose steps are all known must not load what it does not need."""
    script = (
        "import sys; from pathlib import Path; from animl_pipeline import detections, model; from animl_pipeline.config import load_plan;"
        "from animl_pipeline.config.settings import Settings; plan = load_plan(Path(sys.argv[1])); detections.check_ready(plan.detections, Settings());"
        "model.check_ready(plan, Settings()); print(*{'torch', 'timm', 'boto3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(SAMPLE)], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    assert done.stdout.strip() == ""
    begun = time.monotonic()
    check_start(load_plan(SAMPLE), Settings())
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0.in1k", "resnet50", "resnet50.a1_in1k", "vit_tiny_patch16_224"])
def test_every_way_that_timm_names_an_architecture_is_known(backbone: str) -> None:
    check_start(sample(train={"backbone": backbone, "weights": "timm"}), Settings())


def test_files_are_looked_for_where_the_data_is(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(b"")
    (tmp_path / "mine.pt").write_bytes(b"")
    check_start(sample(train={"weights": "mine.safetensors"}), settings)
    check_detector(DetectionsConfig(detector="mine.pt"), settings)
    with pytest.raises(WeightsError, match=rf"train\.weights: expected weights at {tmp_path}/other\.safetensors, found no such file"):
        check_start(sample(train={"weights": "other.safetensors"}), settings)
    with pytest.raises(WeightsError, match=r"train\.fallback_weights: expected weights at"):
        check_start(sample(train={"weights": "released", "fallback_weights": "other.safetensors"}), settings)


def test_what_lies_elsewhere_is_not_fetched_but_must_have_a_sha256(tmp_path: Path) -> None:
    settings, nobody = Settings(cache=tmp_path / "cache"), "http://127.0.0.1:9/mine"
    check_start(sample(train={"weights": f"{nobody}.safetensors?sig=x", "weights_sha256": "0" * 64}), settings)
    check_detector(DetectionsConfig(detector=f"{nobody}.pt", sha256="0" * 64), settings)
    check_detector(DetectionsConfig(detector="sagemaker:megadetector"), settings)
    with pytest.raises(WeightsError, match=r"set train\.weights_sha256 to the file's sha256"):
        check_start(sample(train={"weights": f"{nobody}.safetensors"}), settings)
    with pytest.raises(WeightsError, match=r"run `animl-pipeline weights fetch megadetector-v5a`"):
        check_detector(DetectionsConfig(detector="megadetector-v5a"), settings)
    assert not (tmp_path / "cache").exists()


def test_weights_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    (tmp_path / "mine.onnx").write_bytes(b"")
    with pytest.raises(DetectionsError, match=r"are weights of a classifier; set it to one of megadetector-lite"):
        check_detector(DetectionsConfig(detector="efficientnet-lite0-imagenet"), settings)
    with pytest.raises(DetectionsError, match=r"expected a \.pt checkpoint .* found mine\.onnx"):
        check_detector(DetectionsConfig(detector="mine.onnx"), settings)
    with pytest.raises(TrainingError, match=r"fits the backbone tf_efficientnet_lite0 only, found resnet50"):
        check_start(sample(train={"backbone": "resnet50"}), settings)


def test_a_detector_that_no_box_is_asked_of_may_be_anything() -> None:
    check_detector(DetectionsConfig(source="annotations", detector="nothing"), Settings())
