"""`animl-pipeline release …` as a person types it, against SageMaker on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from typer.testing import CliRunner

from animl_pipeline.cli.main import app
from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import EvaluationError, PlanError, ReleaseError, SettingsError
from animl_pipeline.deploy import deploy_package, roll_back
from animl_pipeline.deploy.trained_versions import TrainedVersion, save_report, save_version
from animl_pipeline.storage.store import Store, open_store
from tests.support.local_aws import local_aws_services, release_environment
from tests.support.packaged_model import colour_plan_data, make_package, make_report


class Project:
    """A plan's file, its store, and the release commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings()
        self.store: Store = open_store(self.settings)
        data = colour_plan_data(register={}, keep_versions=1)
        self.plan: Plan = check_plan(data)
        self.file = folder / "colours.yaml"
        self.file.write_text(yaml.safe_dump(data), encoding="utf-8")

    def package(self, n: int, **report: Any) -> Artifact:
        """A package with the latest report."""
        package = make_package(self.store, self.folder, f"v{n}", temperature=float(n))
        save_report(make_report(package, self.store, **report), self.store)
        return package

    def deploy(self, n: int) -> None:
        """Release version n, without Prefect."""
        deploy_package(self.package(n), self.plan, self.store, self.settings)

    def run(self, *words: str, status: int = 0) -> str:
        """The output of `release …`; PLAN stands for the plan's file."""
        done = CliRunner().invoke(app, [str(self.file) if w == "PLAN" else w for w in ("release", *words)], catch_exceptions=False)
        assert done.exit_code == status, done.output
        return done.output


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with local_aws_services(tmp_path_factory.mktemp("cloud")) as variables:
        yield variables | {"ANIML_STAGE": "dev", "COLUMNS": "200"}


@pytest.fixture
def project(cloud: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with release_environment(cloud, tmp_path, monkeypatch):
        yield Project(tmp_path)


def test_a_dry_run_shows_a_diff_and_what_prevents_a_release(project: Project) -> None:
    project.package(1)
    shown = project.run("PLAN", "--dry-run")
    assert "+ config" in shown
    assert "aws.amazon.com/sagemaker/ai/pricing" in shown
    assert "/ml/colours-realtime-endpoint-dev" in shown
    assert shown.splitlines()[-1].endswith("nothing would stop the release")
    assert "absent" in project.run("status", "PLAN")
    project.package(2, verdict="hold", reasons=("red lost 12 % recall",))
    refused = project.run("--dry-run", "PLAN", status=1)
    assert "red lost 12 % recall" in refused
    assert refused.splitlines()[-1].endswith("1 error would stop the release")


def test_a_release_takes_the_version_that_it_is_given(project: Project) -> None:
    trial = make_report(make_package(project.store, project.folder, "trial1", temperature=9.0), project.store, verdict="hold", reasons=("too few",))
    save_version(TrainedVersion(report=trial, trained_at="2026-01-01", changes=("train.epochs 3",)), project.store)
    project.package(1)
    assert project.run("PLAN", "--dry-run").splitlines()[-1].endswith("nothing would stop the release")
    held = project.run("PLAN", "--dry-run", "--version", "trial1", status=1)
    assert "too few" in held
    with pytest.raises(EvaluationError) as refused:
        project.run("PLAN", "--dry-run", "--version", "v7")
    assert refused.value.code == "unknown_version"


def test_status_history_and_gc_show_what_is_deployed(project: Project) -> None:
    assert "no release yet" in project.run("history", "PLAN")
    project.deploy(1)
    project.deploy(2)
    assert "InService, v2" in project.run("status", "PLAN")
    roll_back(project.plan, project.store, project.settings)
    histories = json.loads(project.run("history", "PLAN", "--json"))
    of_each_endpoint = [("release", "v1", "done"), ("release", "v2", "done"), ("rollback", "v1", "done")]
    assert [[(r["kind"], r["version"], r["state"]) for r in records] for records in histories.values()] == 2 * [of_each_endpoint]
    shown = [line.split() for line in project.run("history", "PLAN").splitlines()]
    assert [tuple(words[2:5]) for words in shown if words[4:5] == ["done"]] == 2 * of_each_endpoint
    assert "would delete config   colours-v2" in project.run("gc", "PLAN", "--dry-run")
    assert "deleted config   colours-v2" in project.run("gc", "PLAN")
    assert "nothing to delete" in project.run("gc", "PLAN")
    assert "InService, v1" in project.run("status", "PLAN")


def test_the_registration_is_in_the_store_and_in_the_folder_of_the_option(project: Project) -> None:
    project.package(1)
    with pytest.raises(ReleaseError) as refused:
        project.run("register", "PLAN")
    assert refused.value.code == "not_released"
    assert "(not written)" in project.run("register", "PLAN", "--only-files")
    project.deploy(1)
    assert "checklist.md" in project.run("register", "PLAN", "--folder", str(project.folder / "bundle"))
    written = {"MODEL_CARD.md", "category-config.json", "checklist.md", "mlmodel.js", "mlmodel.json", "ssm.json"}
    assert {p.name for p in (project.folder / "bundle").iterdir()} == written
    assert boto3.client("ssm").get_parameter(Name="/ml/colours-batch-endpoint-dev")["Parameter"]["Value"] == "colours-concurrency-80"


def test_help_lists_the_commands(project: Project) -> None:
    shown = project.run("--help")
    for command in ("run", "status", "history", "rollback", "register", "gc"):
        assert f"  {command} " in shown
    assert "--force REASON" in project.run("run", "--help")


def test_a_plan_may_be_given_by_name_but_a_misspelt_command_is_not_a_plan(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.package(1)
    monkeypatch.setenv("ANIML_PLANS", str(project.folder))
    assert "absent" in project.run("status", "colours")
    assert "nothing would stop the release" in project.run("colours", "--dry-run")
    with pytest.raises(PlanError):
        project.run("history", "colour")
    for misspelt in ("statuss", "histroy", "rolback"):
        assert f"No such command '{misspelt}'" in project.run(misspelt, "colours", status=2)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--approve-as", ""], "bad_name"),
        (["--approve-as", " \t", "--dry-run"], "bad_name"),
        (["--approve-as", "r" * 201], "bad_name"),
        (["--approve-as", "the ranger", "--note", "n" * 2001], "bad_note"),
        (["--note", "looked at the foxes"], "note_without_name"),
    ],
)
def test_an_invalid_approval_is_refused_before_anything_is_done(project: Project, words: list[str], code: str) -> None:
    with pytest.raises(ReleaseError) as refused:
        project.run("PLAN", *words)
    assert refused.value.code == code
    assert "no release yet" in project.run("history", "PLAN")


def test_all_variables_that_a_release_lacks_are_named_at_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.package(1)
    monkeypatch.delenv("ANIML_ROLE_ARN")
    monkeypatch.delenv("ANIML_ENDPOINT_IMAGE")
    with pytest.raises(SettingsError) as refused:
        project.run("PLAN", "--dry-run")
    assert refused.value.code == "missing_settings"
    assert all(name in str(refused.value) for name in ("ANIML_ROLE_ARN", "ANIML_ENDPOINT_IMAGE"))
