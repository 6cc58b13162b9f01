"""Approval before a release: asked for on a real Prefect server, given or refused there or in a terminal, never by silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from typer.testing import CliRunner

from animl_pipeline.cli.main import app
from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.release_and_reference_types import Approval
from animl_pipeline.deploy import deploy_package, dry_run_release, release_records, roll_back
from animl_pipeline.deploy.trained_versions import TrainedVersion, save_report, save_version
from animl_pipeline.storage.store import Store, open_store
from flows.release import release
from tests.support.endpoint_process import wait_until
from tests.support.local_aws import local_aws_services, release_environment
from tests.support.packaged_model import colour_plan_data, make_package, make_report
from tests.support.prefect_server import PREFECT_TEST, call_server, read_run, resume_run, start_run

pytestmark = PREFECT_TEST
YES = Approval(by="ranger", at="2026-11-22T12:00:00+00:00", given_in="command line")


class Project:
    """A plan whose releases need an approval, its store, and its endpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings()
        self.store: Store = open_store(self.settings)
        self.file = folder / "colours.yaml"
        self.write()

    def write(self, **release: Any) -> None:
        """The plan's file, with some of ``release`` changed."""
        data = colour_plan_data(register={}, batch_endpoint=None, approval="required", **release)
        self.plan: Plan = check_plan(data)
        self.file.write_text(yaml.safe_dump(data), encoding="utf-8")

    def package(self, n: int, verdict: str = "promote", **report: Any) -> Artifact:
        """A package that was judged last."""
        package = make_package(self.store, self.folder, f"v{n}", temperature=float(n))
        made = make_report(package, self.store, verdict=verdict, **report)
        save_version(TrainedVersion(report=made), self.store)
        save_report(made, self.store)
        return package

    def start_release(self, **parameters: str) -> FlowRun:
        """A run of the deployment of `release`, as a worker carries it out."""
        return start_run(release, f"release-{self.folder.name}", {"plan": str(self.file)} | parameters)

    def deployed_version(self) -> str | None:
        """The version behind the endpoint, according to the history."""
        done = [r for r in release_records(self.plan, self.store) if r.state == "done"]
        return done[-1].version if done else None

    def run_release(self, *words: str, status: int = 0) -> str:
        """The output of the command `release`, or its error."""
        done = CliRunner().invoke(app, ["release", str(self.file), *words], catch_exceptions=True)
        if isinstance(done.exception, ReleaseError):
            assert status == done.exception.exit_code
            return str(done.exception)
        assert done.exit_code == status, done.output
        return done.output


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with local_aws_services(tmp_path_factory.mktemp("cloud")) as variables:
        yield variables | {"ANIML_STAGE": "dev"}


@pytest.fixture
def project(cloud: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with release_environment(cloud, tmp_path, monkeypatch):
        yield Project(tmp_path)


def answer(run: FlowRun, **run_input: Any) -> str:
    """What Prefect's API makes of a person's answer: ACCEPT or REJECT."""
    return str(call_server("POST", f"/flow_runs/{run.id}/resume", {"run_input": run_input})["status"])


def test_a_release_waits_suspended_until_a_person_approves_it_and_keeps_name_and_note(project: Project) -> None:
    project.write(replay={"images": 5})
    project.package(1, headline="all three colours are told apart", reasons=("no champion to compare with",))
    run = project.start_release()
    assert run.state_name == "Suspended"
    assert project.deployed_version() is None
    asked = call_server("POST", f"/flow_runs/{run.id}/input/filter", {"prefix": "suspended-approval-", "limit": 9})
    question = next(a["value"] for a in asked if a["key"].endswith("-description"))
    for said in (
        "Release colours v1 to",
        project.plan.endpoint_name(),
        "all three colours are told apart",
        "no champion to compare with",
        "**red**, 1 crop",
        "**Replay:** No replay: this store knows no model in service",
    ):
        assert said in question
    for empty in ({}, {"approve": True}, {"approve": True, "name": "  "}, {"approve": "yes", "name": "ranger"}):
        assert answer(run, **empty) == "REJECT", empty
    assert read_run(run).state_name == "Suspended"
    assert answer(run, approve=True, name="the  ranger", note="looked at the foxes") == "ACCEPT"
    ended = resume_run(release, run)
    assert (ended.state_name, ended.state_type.value) == ("Released", "COMPLETED")  # type: ignore[union-attr]  # it has ended
    assert project.deployed_version() == "v1"
    (record,) = release_records(project.plan, project.store)
    assert record.approval is not None
    assert (record.approval.by, record.approval.note, record.approval.given_in) == ("the ranger", "looked at the foxes", "prefect")
    written = next((project.folder / "store" / "registrations").rglob("checklist.md"))
    assert "- [x] approved by the ranger" in written.read_text()
    assert "approved by the ranger" in written.with_name("MODEL_CARD.md").read_text()


def test_a_refusal_ends_the_run_and_changes_nothing(project: Project) -> None:
    project.package(1)
    run = project.start_release()
    assert answer(run, approve=False, name="Ben", note="too few rats") == "ACCEPT"
    ended = resume_run(release, run)
    assert (ended.state_name, ended.state_type.value) == ("Refused", "COMPLETED")  # type: ignore[union-attr]  # it has ended
    assert str(ended.state.message) == "Ben refused the release of v1: too few rats"  # type: ignore[union-attr]
    assert release_records(project.plan, project.store) == ()


def test_an_answer_does_not_count_for_a_newer_package(project: Project) -> None:
    project.package(1)
    run = project.start_release()
    project.package(2)
    assert answer(run, approve=True, name="ranger") == "ACCEPT"
    again = resume_run(release, run)
    assert again.state_name == "Suspended"
    assert project.deployed_version() is None
    assert answer(run, approve=True, name="ranger") == "ACCEPT"
    assert resume_run(release, run).state_name == "Released"
    assert project.deployed_version() == "v2"


def test_an_approval_releases_the_package_that_was_judged_although_a_newer_one_was_trained(project: Project) -> None:
    judged = project.package(1)
    run = project.start_release(version=judged.digest)  # as a training starts it
    project.package(2)
    assert answer(run, approve=True, name="ranger") == "ACCEPT"
    assert resume_run(release, run).state_name == "Released"
    assert project.deployed_version() == "v1"


def test_a_run_that_is_resumed_without_an_answer_and_one_without_any_answer_in_time_release_nothing(project: Project) -> None:
    project.package(1)
    run = project.start_release()
    state = {"type": "SCHEDULED", "name": "Resuming"}
    call_server("POST", f"/flow_runs/{run.id}/set_state", {"state": state, "force": True})
    pushed = resume_run(release, run)
    assert pushed.state_name == "Failed"
    project.write(approval_timeout_days=1e-9)
    late = project.start_release()
    wait_until(lambda: read_run(late).state_name == "Failed", "the server gives the run up", seconds=60)
    assert "never resumed" in str(read_run(late).state.message)  # type: ignore[union-attr]
    assert release_records(project.plan, project.store) == ()


def test_the_command_line_says_how_to_approve_and_takes_a_name(project: Project) -> None:
    project.package(1)
    said = project.run_release(status=1)
    assert "animl-pipeline release PLAN --approve-as NAME" in said
    assert "--approve-as" in project.run_release("--note", "fine", status=1)
    project.run_release("--approve-as", "  ", status=1)
    assert "warn  approval" in project.run_release("--dry-run")
    assert "warn  approval" not in project.run_release("--dry-run", "--approve-as", "ranger")
    assert project.deployed_version() is None
    assert "approved by ranger" in project.run_release("--approve-as", "ranger", "--note", "read it")
    assert project.deployed_version() == "v1"
    assert "served already v1" in project.run_release()  # what is deployed already needs no second approval
    rollbacks = CliRunner().invoke(app, ["release", "history", str(project.file)])
    assert "approved by ranger" in rollbacks.output


def test_force_is_no_approval_and_a_held_model_is_no_failure(project: Project) -> None:
    project.package(1, verdict="hold", reasons=("red lost 12 % recall",))
    assert "red lost 12 % recall" in project.run_release("--approve-as", "ranger", status=1)
    assert "--approve-as" in project.run_release("--force", "a demonstration", status=1)
    run = project.start_release()
    assert (run.state_name, run.state_type.value) == ("Held", "COMPLETED")  # type: ignore[union-attr]  # it has ended
    project.package(2, verdict="need_more_data")
    assert project.start_release().state_name == "NeedMoreData"
    assert project.deployed_version() is None
    assert "approved by ranger" in project.run_release("--force", "a demonstration", "--approve-as", "ranger")
    (record,) = release_records(project.plan, project.store)
    assert record.forced == "a demonstration"


def test_deploying_needs_an_approval_even_without_prefect_but_a_rollback_does_not(project: Project) -> None:
    first, second = project.package(1), project.package(2)
    with pytest.raises(ReleaseError):
        deploy_package(first, project.plan, project.store, project.settings)
    asked = {c.name: c.message for c in dry_run_release(first, project.plan, project.store, project.settings).checks}
    assert "runs the new model" not in asked["approval"]
    project.write(replay={"images": 2000})
    asked = {c.name: c.message for c in dry_run_release(first, project.plan, project.store, project.settings).checks}
    assert "runs the new model on the last 2,000 images" in asked["approval"]
    for package in (first, second):
        deploy_package(package, project.plan, project.store, project.settings, approval=YES)
    assert roll_back(project.plan, project.store, project.settings).version == "v1"  # a rollback needs no approval
    with pytest.raises(ReleaseError):
        deploy_package(second, project.plan, project.store, project.settings)
