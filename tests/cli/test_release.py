"""`animl-pipeline release …` as a person types it, against SageMaker on this machine."""

from __future__ import annotations

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
from animl_pipeline.core.errors import PlanError, ReleaseError, SettingsError
from animl_pipeline.deploy import deploy_package, roll_back
from animl_pipeline.deploy.latest_report import save_report
from animl_pipeline.storage.step_cache import Store, open_store
from tests.support.local_aws import local_aws_services, release_environment
from tests.support.packaged_model import colour_plan_data, make_package, make_report


class Desk:
    """A plan's file, its store, and the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings()
        self.store: Store = open_store(self.settings)
        data = colour_plan_data(register={}, keep_versions=1)
        self.plan: Plan = check_plan(data)
        self.file = folder / "colours.yaml"
        self.file.write_text(yaml.safe_dump(data), encoding="utf-8")

    def package(self, n: int, **report: Any) -> Artifact:
        """A package that was judged last."""
        package = make_package(self.store, self.folder, f"v{n}", temperature=float(n))
        save_report(make_report(package, self.store, **report), self.store)
        return package

    def deploy(self, n: int) -> None:
        """Release version n, without Prefect."""
        deploy_package(self.package(n), self.plan, self.store, self.settings)

    def say(self, *words: str, status: int = 0) -> str:
        """What a command answers; PLAN stands for the plan's file."""
        done = CliRunner().invoke(app, [str(self.file) if w == "PLAN" else w for w in ("release", *words)], catch_exceptions=False)
        assert done.exit_code == status, done.output
        return done.output


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with local_aws_services(tmp_path_factory.mktemp("cloud")) as variables:
        yield variables | {"ANIML_STAGE": "dev", "COLUMNS": "200"}


@pytest.fixture
def desk(cloud: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with release_environment(cloud, tmp_path, monkeypatch):
        yield Desk(tmp_path)


def test_a_dry_run_is_a_diff_with_costs_and_what_is_in_the_way(desk: Desk) -> None:
    desk.package(1)
    said = desk.say("PLAN", "--dry-run")
    assert "+ config" in said
    assert "aws.amazon.com/sagemaker/ai/pricing" in said
    assert "/ml/colours-realtime-endpoint-dev" in said
    assert said.splitlines()[-1].endswith("nothing would stop the release")
    assert "absent" in desk.say("status", "PLAN")
    desk.package(2, verdict="hold", reasons=("red lost 12 % recall",))
    refused = desk.say("--dry-run", "PLAN", status=1)
    assert "red lost 12 % recall" in refused
    assert refused.splitlines()[-1].endswith("1 error would stop the release")


def test_status_history_and_gc_tell_what_is_there(desk: Desk) -> None:
    assert "nothing was released yet" in desk.say("history", "PLAN")
    desk.deploy(1)
    desk.deploy(2)
    assert "InService, v2" in desk.say("status", "PLAN")
    roll_back(desk.plan, desk.store, desk.settings)
    lines = desk.say("history", "PLAN").splitlines()
    assert [line.split()[1:4] for line in lines[2:]] == [["release", "v1", "done"], ["release", "v2", "done"], ["rollback", "v1", "done"]]
    assert "would delete config   colours-v2" in desk.say("gc", "PLAN", "--dry-run")
    assert "deleted config   colours-v2" in desk.say("gc", "PLAN")
    assert "nothing to delete" in desk.say("gc", "PLAN")
    assert "InService, v1" in desk.say("status", "PLAN")


def test_the_registration_lies_in_the_store_and_where_it_is_asked_for(desk: Desk) -> None:
    desk.package(1)
    with pytest.raises(ReleaseError, match="expected a released package behind"):
        desk.say("register", "PLAN")
    assert "(not written)" in desk.say("register", "PLAN", "--only-files")
    desk.deploy(1)
    assert "checklist.md" in desk.say("register", "PLAN", "--folder", str(desk.folder / "bundle"))
    written = {"MODEL_CARD.md", "category-config.json", "checklist.md", "mlmodel.js", "mlmodel.json", "ssm.json"}
    assert {p.name for p in (desk.folder / "bundle").iterdir()} == written
    assert boto3.client("ssm").get_parameter(Name="/ml/colours-batch-endpoint-dev")["Parameter"]["Value"] == desk.plan.endpoint_name()


def test_help_teaches_and_a_plan_may_stand_first(desk: Desk) -> None:
    said = desk.say("--help")
    for command in ("run", "status", "history", "rollback", "register", "gc"):
        assert f"  {command} " in said
    assert "--force REASON" in desk.say("run", "--help")


def test_a_plan_may_be_named_and_a_command_that_is_misspelt_is_not_taken_for_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.package(1)
    monkeypatch.setenv("ANIML_PLANS", str(desk.folder))
    assert "absent" in desk.say("status", "colours")
    assert "nothing would stop the release" in desk.say("colours", "--dry-run")
    with pytest.raises(PlanError, match="expected a plan's name or the path of its YAML file, found 'colour'"):
        desk.say("history", "colour")
    for misspelt in ("statuss", "histroy", "rolback"):
        assert f"No such command '{misspelt}'" in desk.say(misspelt, "colours", status=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--approve-as", ""], "expected the name of the person who approves, at most 200 characters, found none"),
        (["--approve-as", " \t", "--dry-run"], "expected the name of the person who approves, at most 200 characters, found none"),
        (["--approve-as", "r" * 201], "at most 200 characters, found 201"),
        (["--approve-as", "the ranger", "--note", "n" * 2001], "expected a note of at most 2,000 characters, found 2,001"),
        (["--note", "looked at the foxes"], "--note belongs to an approval: give your name, too"),
    ],
)
def test_an_approval_that_is_none_is_one_line_before_anything_is_done(desk: Desk, words: list[str], said: str) -> None:
    with pytest.raises(ReleaseError) as refused:
        desk.say("PLAN", *words)
    assert said in str(refused.value)
    assert "nothing was released yet" in desk.say("history", "PLAN")


def test_all_variables_that_a_release_lacks_are_named_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.package(1)
    monkeypatch.delenv("ANIML_ROLE_ARN")
    monkeypatch.delenv("ANIML_ENDPOINT_IMAGE")
    with pytest.raises(SettingsError, match=r"a release needs ANIML_ROLE_ARN .*and ANIML_ENDPOINT_IMAGE .*not set"):
        desk.say("PLAN", "--dry-run")
