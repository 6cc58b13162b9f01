"""A person's yes before a release: asked on a real Prefect server, given or refused there or in a terminal, never by silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prefect.client.schemas.objects import FlowRun
from typer.testing import CliRunner

from animl_pipeline.cli.main import app
from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Approval, Artifact
from animl_pipeline.deploy import deploy_endpoint, foresee_release, release_history, rollback_endpoint
from animl_pipeline.deploy.latest_report import keep_report
from animl_pipeline.storage.step_cache import Store, open_store
from flows.release import release
from tests.support.endpoint_process import until
from tests.support.local_aws import at_a_desk, aws_here
from tests.support.packaged_model import colour_plan_data, package_of, report_of
from tests.support.prefect_server import begun, carried_on, read_run

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.usefixtures("prefect"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
YES = Approval(by="ranger", at="2026-11-22T12:00:00+00:00", door="command line")


class House:
    """A plan that asks for an approval, its store, and its endpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings()
        self.store: Store = open_store(self.settings)
        self.file = folder / "colours.yaml"
        self.write()

    def write(self, **release: Any) -> None:
        """The plan's file, with some of ``release`` changed."""
        data = colour_plan_data(register={}, approval="required", **release)
        self.plan: Plan = check_plan(data)
        self.file.write_text(yaml.safe_dump(data), encoding="utf-8")

    def package(self, n: int, verdict: str = "promote", **report: Any) -> Artifact:
        """A package that was judged last."""
        package = package_of(self.store, self.folder, f"v{n}", temperature=float(n))
        keep_report(report_of(package, self.store, verdict=verdict, **report), self.store)
        return package

    def asks(self) -> FlowRun:
        """A run of the deployment of `release`, as a worker carries it out."""
        return begun(release, f"release-{self.folder.name}", {"plan": str(self.file)})

    def serves(self) -> str | None:
        """The version behind the endpoint, by the history."""
        done = [r for r in release_history(self.plan, self.store) if r.state == "done"]
        return done[-1].version if done else None

    def type(self, *words: str, status: int = 0) -> str:
        """What the command `release` answers."""
        done = CliRunner().invoke(app, ["release", str(self.file), *words], catch_exceptions=True)
        if isinstance(done.exception, ReleaseError):
            assert status == done.exception.exit_code
            return str(done.exception)
        assert done.exit_code == status, done.output
        return done.output


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with aws_here(tmp_path_factory.mktemp("cloud")) as variables:
        yield variables | {"ANIML_STAGE": "dev"}


@pytest.fixture
def house(cloud: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with at_a_desk(cloud, tmp_path, monkeypatch):
        yield House(tmp_path)


def answer(address: str, run: FlowRun, **run_input: Any) -> dict[str, Any]:
    """What Prefect's API says to an answer, as `curl` gives it."""
    said: dict[str, Any] = requests.post(f"{address}/flow_runs/{run.id}/resume", json={"run_input": run_input}, timeout=30).json()
    return said


def test_a_release_waits_suspended_until_a_person_says_yes_and_keeps_who_and_why(house: House, prefect: str) -> None:
    house.package(1, headline="all three colours are told apart", reasons=("no champion to compare with",))
    run = house.asks()
    assert run.state_name == "Suspended"
    assert house.serves() is None
    asked = requests.post(f"{prefect}/flow_runs/{run.id}/input/filter", json={"prefix": "suspended-approval-", "limit": 9}, timeout=30).json()
    question = next(a["value"] for a in asked if a["key"].endswith("-description"))
    for said in ("Release colours v1 to", house.plan.endpoint_name(), "all three colours are told apart", "no champion to compare with", "| red | 1"):
        assert said in question
    for empty in ({}, {"name": "ranger"}, {"approve": "yes"}, {"approve": "yes", "name": "  "}, {"approve": True, "name": "ranger"}):
        said = answer(prefect, run, **empty)
        assert said["status"] == "REJECT", empty
    assert read_run(run).state_name == "Suspended"
    assert answer(prefect, run, approve="yes", name="the  ranger", note="looked at the foxes")["status"] == "ACCEPT"
    ended = carried_on(release, run)
    assert (ended.state_name, ended.state_type.value) == ("Released", "COMPLETED")  # type: ignore[union-attr]  # it has ended
    assert house.serves() == "v1"
    (record,) = release_history(house.plan, house.store)
    assert record.approval is not None
    assert (record.approval.by, record.approval.note, record.approval.door) == ("the ranger", "looked at the foxes", "prefect")
    written = next((house.folder / "store" / "registrations").rglob("checklist.md"))
    assert "- [x] approved by the ranger" in written.read_text()
    assert "approved by the ranger" in written.with_name("MODEL_CARD.md").read_text()


def test_a_refusal_ends_the_run_and_changes_nothing(house: House, prefect: str) -> None:
    house.package(1)
    run = house.asks()
    answer(prefect, run, approve="no", name="Ben", note="too few rats")
    ended = carried_on(release, run)
    assert (ended.state_name, ended.state_type.value) == ("Refused", "COMPLETED")  # type: ignore[union-attr]  # it has ended
    assert str(ended.state.message) == "Ben refused the release of v1: too few rats"  # type: ignore[union-attr]
    assert release_history(house.plan, house.store) == ()


def test_an_answer_is_of_the_package_that_was_asked_about_and_of_no_newer_one(house: House, prefect: str) -> None:
    house.package(1)
    run = house.asks()
    house.package(2)
    answer(prefect, run, approve="yes", name="ranger")
    again = carried_on(release, run)
    assert again.state_name == "Suspended"
    assert house.serves() is None
    answer(prefect, run, approve="yes", name="ranger")
    assert carried_on(release, run).state_name == "Released"
    assert house.serves() == "v2"


def test_a_run_that_is_pushed_on_without_an_answer_and_one_that_nobody_answers_release_nothing(house: House, prefect: str) -> None:
    house.package(1)
    run = house.asks()
    state = {"type": "SCHEDULED", "name": "Resuming"}
    requests.post(f"{prefect}/flow_runs/{run.id}/set_state", json={"state": state, "force": True}, timeout=30).raise_for_status()
    pushed = carried_on(release, run)
    assert pushed.state_name == "Failed"
    assert "without an answer, which approves nothing" in str(pushed.state.message)  # type: ignore[union-attr]  # it has ended
    house.write(approval_timeout_days=1e-9)
    late = house.asks()
    until(lambda: read_run(late).state_name == "Failed", "the server gives the run up", seconds=60)
    assert "never resumed" in str(read_run(late).state.message)  # type: ignore[union-attr]
    assert release_history(house.plan, house.store) == ()


def test_a_terminal_says_how_to_approve_and_takes_a_name_for_it(house: House) -> None:
    house.package(1)
    said = house.type(status=1)
    assert "release.approval: required, and nobody has approved it" in said
    assert "animl-pipeline release PLAN --approve-as NAME" in said
    assert "give your name" in house.type("--note", "fine", status=1)
    assert "expected the name of the person who approves" in house.type("--approve-as", "  ", status=1)
    assert "a person must approve it" in house.type("--dry-run")
    assert "a person must approve it" not in house.type("--dry-run", "--approve-as", "ranger")
    assert house.serves() is None
    assert "approved by ranger" in house.type("--approve-as", "ranger", "--note", "read it")
    assert house.serves() == "v1"
    assert "served already v1" in house.type()  # what is in service already needs no second yes
    rollbacks = CliRunner().invoke(app, ["release", "history", str(house.file)])
    assert "approved by ranger" in rollbacks.output


def test_force_is_no_approval_and_a_held_model_is_no_failure(house: House) -> None:
    house.package(1, verdict="hold", reasons=("red lost 12 % recall",))
    assert "red lost 12 % recall" in house.type("--approve-as", "ranger", status=1)
    assert "nobody has approved it" in house.type("--force", "a demonstration", status=1)
    run = house.asks()
    assert (run.state_name, run.state_type.value) == ("Held", "COMPLETED")  # type: ignore[union-attr]  # it has ended
    house.package(2, verdict="need_more_data")
    assert house.asks().state_name == "NeedMoreData"
    assert house.serves() is None
    assert "approved by ranger" in house.type("--force", "a demonstration", "--approve-as", "ranger")
    (record,) = release_history(house.plan, house.store)
    assert record.forced == "a demonstration"


def test_the_room_itself_releases_nothing_unapproved_but_finishes_and_takes_back_what_was(house: House) -> None:
    first, second = house.package(1), house.package(2)
    with pytest.raises(ReleaseError, match="nobody has approved"):
        deploy_endpoint(first, house.plan, house.store, house.settings)
    assert any(f.what == "approval" for f in foresee_release(first, house.plan, house.store, house.settings).findings)
    for package in (first, second):
        deploy_endpoint(package, house.plan, house.store, house.settings, approval=YES)
    assert rollback_endpoint(house.plan, house.store, house.settings).version == "v1"  # a way back needs nobody's yes
    with pytest.raises(ReleaseError, match="nobody has approved"):
        deploy_endpoint(second, house.plan, house.store, house.settings)
