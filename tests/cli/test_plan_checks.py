"""Detector, backbone and weights of a plan are checked before anything else is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from animl_pipeline.config import DetectionsConfig, Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError, PipelineError, TrainingError, WeightsError
from animl_pipeline.steps.detections import check_ready as check_detector
from animl_pipeline.steps.training import check_backbone_and_weights
from tasks.store_and_data_paths import resolve_run_paths
from tasks.training import check_training_preconditions
from tests.support.command_line import run_command
from tests.support.paths import ROOT
from tests.support.tiny_project import write_project

SAMPLE = ROOT / "deployments" / "plans" / "sample.yaml"
WRONG = {
    "backbone": ("train", "tf_efficientnet_litte0", "tf_efficientnet_lite0"),
    "weights": ("train", "efficientnet-lite9", "efficientnet-lite0-imagenet"),
    "detector": ("detections", "megadetector-light", "megadetector-lite"),
}
"""Key → its section, a wrong value, and the value that the message suggests."""


def sample() -> dict[str, Any]:
    """The sample plan with a detector instead of its results file, which the demo writes."""
    data: dict[str, Any] = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    data["detections"] |= {"source": "auto", "results": None}
    return data


def change_sample(**changes: dict[str, str]) -> Plan:
    data = sample()
    return Plan.model_validate({key: part | changes.get(key, {}) if isinstance(part, dict) else part for key, part in data.items()})


@pytest.mark.parametrize("key", list(WRONG))
def test_plan_check_refuses_an_unknown_detector_backbone_or_weights_in_one_line(tmp_path: Path, key: str) -> None:
    section, wrong, suggested = WRONG[key]
    data = sample()
    data[section][key] = wrong
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(data))
    done = run_command("plan", "check", tmp_path / "plan.yaml", "--data", tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert f"{section}.{key}: " in line
    assert suggested in line


@pytest.mark.parametrize("key", list(WRONG))
def test_retrain_refuses_it_before_it_reads_an_export(tmp_path: Path, key: str) -> None:
    section, wrong, _ = WRONG[key]
    paths = resolve_run_paths(str(tmp_path / "store"), str(tmp_path))
    with pytest.raises((DetectionsError, TrainingError, WeightsError)):
        check_training_preconditions.fn(change_sample(**{section: {key: wrong}}), paths)
    assert not (tmp_path / "store").exists()


def test_retrain_ends_with_that_line_and_makes_no_step(tmp_path: Path) -> None:
    plan = write_project(tmp_path, locations=1, each=1)
    plan.write_text(plan.read_text(encoding="utf-8").replace("tf_efficientnet_lite0", "tf_efficientnet_litte0"), encoding="utf-8")
    done = run_command("retrain", plan, "--store", tmp_path / "store")
    assert done.returncode == 1
    assert "tf_efficientnet_lite0" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "store" / "steps").exists()


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0.in1k", "resnet50", "resnet50.a1_in1k", "vit_tiny_patch16_224"])
def test_every_form_of_timms_architecture_names_is_known(backbone: str) -> None:
    check_backbone_and_weights(change_sample(train={"backbone": backbone, "weights": "timm"}), Settings())


def refusal_of_training(settings: Settings, **train: str) -> PipelineError:
    with pytest.raises((TrainingError, WeightsError)) as refused:
        check_backbone_and_weights(change_sample(train=train), settings)
    return refused.value


def refusal_of_detector(settings: Settings, detector: str) -> PipelineError:
    with pytest.raises((DetectionsError, WeightsError)) as refused:
        check_detector(DetectionsConfig(detector=detector), settings)
    return refused.value


def test_relative_paths_of_weights_start_at_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(b"")
    (tmp_path / "mine.pt").write_bytes(b"")
    check_backbone_and_weights(change_sample(train={"weights": "mine.safetensors"}), settings)
    check_detector(DetectionsConfig(detector="mine.pt"), settings)
    assert str(tmp_path / "other.safetensors") in str(refusal_of_training(settings, weights="other.safetensors"))
    fallback = refusal_of_training(settings, weights="released", fallback_weights="other.safetensors")
    assert (fallback.code, "train.fallback_weights" in str(fallback)) == ("no_such_file", True)


def test_weights_at_a_url_are_not_downloaded_but_need_a_sha256(tmp_path: Path) -> None:
    settings, url = Settings(cache=tmp_path / "cache"), "http://127.0.0.1:9/mine"
    check_backbone_and_weights(change_sample(train={"weights": f"{url}.safetensors?sig=x", "weights_sha256": "0" * 64}), settings)
    check_detector(DetectionsConfig(detector=f"{url}.pt", sha256="0" * 64), settings)
    check_detector(DetectionsConfig(detector="sagemaker:megadetector"), settings)
    assert refusal_of_training(settings, weights=f"{url}.safetensors").code == "no_sha256"
    assert refusal_of_detector(settings, "megadetector-v5a").code == "no_sha256"
    assert not (tmp_path / "cache").exists()


def test_weights_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    (tmp_path / "mine.onnx").write_bytes(b"")
    assert refusal_of_detector(settings, "efficientnet-lite0-imagenet").code == "not_a_detector"
    assert refusal_of_detector(settings, "mine.onnx").code == "not_a_checkpoint"
    assert refusal_of_training(settings, backbone="resnet50").code == "weights_do_not_fit"


def test_a_detector_that_is_not_used_may_be_anything() -> None:
    check_detector(DetectionsConfig(source="annotations", detector="nothing"), Settings())
