"""The flows watch and validated, on Animl's test server and a real Prefect server: new data starts exactly one run, old data none."""

from __future__ import annotations

import contextvars
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed, Failed, Paused, Pending, Running, Scheduled

from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import PlanError, SettingsError
from animl_pipeline.deploy.trained_versions import record_training_start
from animl_pipeline.storage.store import open_store
from flows.retrain import retrain
from flows.start_training_when_validated import validated, watch
from tasks.dataset import count_validated
from tests.support.animl_images import LONG_AGO, make_images
from tests.support.animl_server import AnimlServer, serve_animl
from tests.support.command_line import COMMAND
from tests.support.paths import ROOT
from tests.support.prefect_server import PREFECT_TEST, send_remaining_events
from tests.support.request_barrier import request_barrier

pytestmark = PREFECT_TEST


@pytest.fixture
def site() -> Iterator[AnimlServer]:
    with serve_animl(make_images(30)) as site:
        yield site


@pytest.fixture
def plan(tmp_path: Path, site: AnimlServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a plan that belongs to this test alone. Its data comes from Animl, and 20 new images are enough for a training."""
    name = f"isle-{tmp_path.name.strip('_').replace('_', '-')[-30:]}".lower()
    content = {
        "model": name[:40].rstrip("-"),
        "sources": [{"name": "isle", "export": "animl://isle", "images": "images"}],
        "labels": {"classes": {"fox": ["fox"], "rat": ["Rat"]}},
        "watch": {"new_images": 20},
    }
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    settings = {"STORE": tmp_path / "store", "PLANS": tmp_path, "API_URL": site.url, "ID_TOKEN": "token-of-a-service-user", "POLL_S": 0.01}
    for key, value in settings.items():
        monkeypatch.setenv(f"ANIML_{key}", str(value))
    return name


@pytest.fixture
def deployed(plan: str) -> UUID:
    """The plan's deployment. No worker carries out its runs."""
    return retrain.to_deployment(name=plan).apply()  # type: ignore[return-value, union-attr]  # sync here


def runs_of(deployment: UUID) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))


def set_state(run: FlowRun, state: State) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, state, force=True)


def watch_result(plan: str) -> str:
    return str(watch(plan, return_state=True).name)


def set_last_training(plan: str, moment: datetime) -> None:
    record_training_start(yaml.safe_load((load_settings().plans / f"{plan}.yaml").read_text())["model"], moment, open_store(load_settings()))


def test_with_nothing_new_there_is_no_run_and_no_failure(plan: str, deployed: UUID) -> None:
    set_last_training(plan, LONG_AGO + timedelta(days=1))
    state = watch(plan, return_state=True)
    assert (state.name, state.type.value) == ("NothingNew", "COMPLETED")
    assert "0 images validated since 2020-01-02 00:00 UTC" in str(state.message)
    assert runs_of(deployed) == []


def test_enough_new_images_start_exactly_one_run_however_often_it_is_asked(plan: str, deployed: UUID) -> None:
    assert [watch_result(plan) for _ in range(10)] == ["Started"] + ["AlreadyUnderWay"] * 9
    (run,) = runs_of(deployed)
    assert run.parameters["plan"] == plan
    set_state(run, Failed())
    assert watch_result(plan) == "AlreadyTried"
    assert len(runs_of(deployed)) == 1


def test_the_answer_for_the_same_data_depends_on_the_state_of_its_run(plan: str, deployed: UUID) -> None:
    payload = {"plan": plan, "batch": "night shift"}
    assert validated(payload, return_state=True).name == "Started"
    (run,) = runs_of(deployed)
    under_way: list[State[Any]] = [Scheduled(), Pending(), Running(), Scheduled(name="Late"), AwaitingRetry(), Paused()]
    ended_well: list[State[Any]] = [
        Completed(),
        *(Completed(name=name) for name in ("Promoted", "AwaitingApproval", "Held", "NeedMoreData", "NothingNew")),
    ]
    ended_badly: list[State[Any]] = [Failed(), Crashed(), Cancelled()]
    states = [(s, "AlreadyUnderWay") for s in under_way] + [(s, "NothingNew") for s in ended_well] + [(s, "AlreadyTried") for s in ended_badly]
    for state, name in states:
        set_state(run, state)
        for answer in (validated(payload, return_state=True), validated(payload | {"overrides": {"seed": 3}}, return_state=True)):
            message = str(answer.message)
            assert (answer.type.value, answer.name) == ("COMPLETED", name), f"{state.name}: {message}"
            assert repr(run.name) in message
            assert str(state.name).lower() in message.lower()
    assert len(runs_of(deployed)) == 1


def test_a_training_that_its_schedule_started_counts_as_under_way_and_one_planned_for_later_does_not(plan: str) -> None:
    deployment = cast("UUID", cast("Any", retrain).to_deployment(name=plan, interval=timedelta(days=1)).apply())

    def schedule(start: datetime) -> None:
        times = {"start_time": start.isoformat(), "end_time": (start + timedelta(days=1, hours=1)).isoformat()}
        with get_client(sync_client=True) as client:  # the answer has no body
            client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json=times | {"min_runs": 1, "max_runs": 1})

    schedule(datetime.now(UTC) - timedelta(days=2))
    (due,) = [run for run in runs_of(deployment) if run.expected_start_time and run.expected_start_time < datetime.now(UTC)]
    assert due.auto_scheduled
    for state in (Pending(), Running(), Scheduled(name="Late"), AwaitingRetry()):
        set_state(due, state)
        assert watch_result(plan) == "AlreadyUnderWay", state.name
    set_state(due, Failed())
    schedule(datetime.now(UTC) + timedelta(days=2))
    assert watch_result(plan) == "Started"


def test_watch_does_not_call_a_held_training_a_failure(plan: str, deployed: UUID) -> None:
    assert watch_result(plan) == "Started"
    (run,) = runs_of(deployed)
    set_state(run, Completed(name="Held"))
    state = watch(plan, return_state=True)
    assert state.name == "NothingNew"
    assert repr(run.name) in str(state.message)
    assert len(runs_of(deployed)) == 1


def test_after_a_training_only_what_was_validated_since_counts(plan: str, deployed: UUID, site: AnimlServer) -> None:
    set_last_training(plan, LONG_AGO + timedelta(days=1))
    for image in site.images[:20]:
        image.objects[0].date = datetime.now(UTC)
    assert watch_result(plan) == "Started"
    set_state(runs_of(deployed)[0], Cancelled())
    set_last_training(plan, datetime.now(UTC) + timedelta(minutes=1))
    assert watch_result(plan) == "NothingNew"


def test_an_animl_that_does_not_answer_is_asked_again_and_no_run_is_started_meanwhile(plan: str, deployed: UUID, site: AnimlServer) -> None:
    delays = list(count_validated.retry_delay_seconds)
    count_validated.retry_delay_seconds = [0] * len(delays)
    try:
        site.errors_503 = 17  # three rounds of five questions, and some
        assert watch_result(plan) == "Started"
        site.errors_503 = 10_000
        set_state(runs_of(deployed)[0], Failed())
        assert watch(plan, return_state=True).type.value == "FAILED"
    finally:
        count_validated.retry_delay_seconds = delays
    assert len(runs_of(deployed)) == 1


@pytest.mark.parametrize("project", ["isles", "mainland"])
def test_a_project_that_the_user_does_not_see_is_an_error_and_not_nothing_new(plan: str, deployed: UUID, tmp_path: Path, project: str) -> None:
    path = tmp_path / f"{plan}.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("animl://isle", f"animl://{project}"), encoding="utf-8")
    with pytest.raises(SettingsError) as refused:
        watch(plan)
    assert (refused.value.code, refused.value.details["project"]) == ("unknown_project", project)
    assert runs_of(deployed) == []


def test_a_plan_that_is_not_deployed_or_has_no_project_is_one_line(plan: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        watch(plan)
    assert refused.value.code == "no_deployment"
    content = yaml.safe_load((tmp_path / f"{plan}.yaml").read_text())
    content["sources"][0]["export"] = "export.json"
    (tmp_path / "files.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(PlanError) as no_project:
        watch("files")
    assert no_project.value.code == "no_project"


def test_the_shipped_plan_is_watched_once_its_source_is_the_project_as_the_docs_say(plan: str, tmp_path: Path) -> None:
    shipped = (ROOT / "deployments" / "plans" / "santa-cruz-island.yaml").read_text(encoding="utf-8")
    (tmp_path / "shipped.yaml").write_text(shipped, encoding="utf-8")
    with pytest.raises(PlanError):
        watch("shipped")
    file, project = "    export: exports/santa-cruz-island_coco.json\n", "    # export: animl://sci_biosecurity\n"
    assert file in shipped
    assert project in shipped
    switched = shipped.replace(file, "").replace(project, "    export: animl://isle\n")  # the test's own project
    (tmp_path / "switched.yaml").write_text(switched, encoding="utf-8")
    state = watch("switched", return_state=True)
    assert state.name == "NothingNew"
    assert "30 images validated and no training yet" in str(state.message)


def test_the_docs_name_both_switches_of_a_watch_that_ships_switched_off() -> None:
    shipped = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
    schedules = [s for d in shipped["deployments"] if d["entrypoint"] == "flows.start_training_when_validated.watch" for s in d["schedules"]]
    assert [(s["slug"], s["active"]) for s in schedules] == [("daily", False)]
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8").split("By default nothing is watched.", 1)[1].split("*By an event.*", 1)[0]
    assert [word in text for word in ("export: animl://sci_biosecurity", "`daily`", "active: true", "in the UI")] == [True] * 4


def run_notify(plan: str, server: str) -> subprocess.CompletedProcess[str]:
    line = [*COMMAND, "notify", plan]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PREFECT_API_URL": server}, timeout=120, check=False)


def test_notify_takes_a_deployed_plan_by_name_or_path_and_refuses_another(plan: str, deployed: UUID, prefect: str) -> None:
    for known in (plan, f"deployments/plans/{plan}.yaml"):
        done = run_notify(known, prefect)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"images of {known} were validated" in " ".join(done.stdout.split())
    for unknown in ("nope", "", "../secret"):
        done = run_notify(unknown, prefect)
        assert (done.returncode, done.stdout) == (PlanError.exit_code, "")
        (line,) = done.stderr.splitlines()
        assert f"expected a plan that is deployed on the Prefect server, found {unknown!r}" in line
        assert plan in line


def test_an_event_starts_a_run_with_its_parameters_once_a_batch(plan: str, deployed: UUID) -> None:
    payload = {"plan": plan, "overrides": {"seed": 3}, "batch": "night shift"}
    assert validated(payload, return_state=True).name == "Started"
    (run,) = runs_of(deployed)
    assert run.parameters["overrides"]["seed"] == 3
    set_state(run, Failed())
    assert validated(payload, return_state=True).name == "AlreadyTried"
    assert validated(payload | {"batch": "day shift"}, return_state=True).name == "Started"


def ask_at_once(count: int, ask: Callable[[], State[Any]]) -> list[State[Any]]:
    """The answers to a question that is asked several times at the same moment."""
    with ThreadPoolExecutor(count) as askers:
        return [asked.result() for asked in [askers.submit(contextvars.copy_context().run, ask) for _ in range(count)]]


def test_of_events_at_the_same_moment_one_starts_the_run_and_the_others_find_it_under_way(plan: str, deployed: UUID, prefect: str) -> None:
    with request_barrier(prefect, b"/create_flow_run ", count=3) as url, temporary_settings({PREFECT_API_URL: url}):
        answers = ask_at_once(3, lambda: validated({"plan": plan, "batch": "night shift"}, return_state=True))
        send_remaining_events()
    (run,) = runs_of(deployed)
    assert sorted(str(a.name) for a in answers) == ["AlreadyUnderWay", "AlreadyUnderWay", "Started"]
    assert all(repr(run.name) in str(answer.message) for answer in answers)


def test_plans_that_share_a_model_and_a_batch_have_a_run_each(plan: str, deployed: UUID, tmp_path: Path) -> None:
    other = f"{plan}-more-epochs"
    (tmp_path / f"{other}.yaml").write_text((tmp_path / f"{plan}.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    deployed_too: UUID = retrain.to_deployment(name=other).apply()  # type: ignore[assignment, union-attr]  # sync here
    for _ in range(2):
        by_event = [validated({"plan": name, "batch": "night shift"}, return_state=True) for name in (plan, other)]
        by_schedule = [watch(name, return_state=True) for name in (plan, other)]
    assert [str(state.name) for state in by_event + by_schedule] == ["AlreadyUnderWay"] * 4
    assert [run.parameters["plan"] for deployment in (deployed, deployed_too) for run in runs_of(deployment)] == [plan, other]


def test_an_event_that_comes_while_a_training_runs_is_not_lost(plan: str, deployed: UUID) -> None:
    def send(batch: str, **overrides: int) -> str:
        return str(validated({"plan": plan, "batch": batch, "overrides": overrides}, return_state=True).name)

    assert send("first") == "Started"
    assert send("second") == "AlreadyUnderWay"  # the run that waits will read it, too
    (waiting,) = runs_of(deployed)
    set_state(waiting, Running())
    assert watch_result(plan) == "AlreadyUnderWay"
    assert [send("third"), send("fourth")] == ["Started", "AlreadyUnderWay"]  # one more, after the one that may have read its labels before
    assert send("fifth", seed=7) == "Started"  # another training than the one that waits
    assert len(runs_of(deployed)) == 3


@pytest.mark.parametrize(
    ("payload", "key"),
    [({}, "plan"), ({"plan": "sample", "overrides": {"epochs": 0}}, "overrides.epochs"), ({"plan": "../secret"}, None)],
)
def test_an_event_that_is_not_valid_is_one_line(plan: str, payload: dict[str, object], key: str | None) -> None:
    with pytest.raises(PlanError) as refused:
        validated(payload)
    assert refused.value.details.get("key") == key
    assert "\n" not in str(refused.value)
