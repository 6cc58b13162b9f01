"""Flows and tasks on Prefect's real server: what the UI shows, what is retried and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun

from animl_pipeline.config import Overrides, SourceConfig
from animl_pipeline.core.errors import DamagedError, ExportError
from animl_pipeline.core.records import Report
from flows.approval import start_release
from flows.release import release
from flows.retrain import retrain
from tasks.dataset import export_annotations
from tasks.policies import PATIENT
from tests.support.tiny_project import write_island, write_plan

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.usefixtures("prefect"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, as this process's store and cache while these tests run."""
    folder = tmp_path_factory.mktemp("location")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANIML_STORE", str(folder / "store"))
        patch.setenv("ANIML_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def asks_first(location: Path, prefect: str) -> Path:
    """A plan whose releases are started by a training and wait for a person."""
    release.to_deployment(name="release").apply()
    write_island(location / "island")
    return planned(location, approval="required", start="after_retrain")


@pytest.fixture(scope="module")
def first(asks_first: Path) -> State[Report]:
    """How the first training ended."""
    return retrain(str(asks_first), return_state=True)


def planned(location: Path, gate: float = 0.0, **changes: str) -> Path:
    """The island's plan with another release and gate; everything up to the model stays as it was made."""
    lenient = {"min_examples": 1, "min_locations": 1, "max_macro_f1_drop": 1.0, "min_macro_f1": gate}
    return write_plan(location / "island", gate=lenient, release={"memory_mb": 1024, "max_concurrency": 2, "timeout_s": 60} | changes)


def releases_of(plan: Path) -> list[FlowRun]:
    """The runs of release/release that are of a plan."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("release/release")
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])))
    return [run for run in runs if run.parameters["plan"] == str(plan)]


def task_runs(run: FlowRun) -> dict[str, TaskRun]:
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return {t.name: t for t in found}


def run_of(state: State[Report]) -> FlowRun:
    """A run as the API tells of it."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(cast("UUID", state.state_details.flow_run_id))


def artifact_keys() -> set[str]:
    wanted = ["kept-and-dropped", "scores", "verdict"]
    with get_client(sync_client=True) as client:
        return {str(a.key) for a in client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=wanted)))}


def test_a_run_leaves_its_tables_in_the_ui_and_a_second_one_is_shown_as_cached(asks_first: Path, first: State[Report]) -> None:
    assert artifact_keys() == {"kept-and-dropped", "scores", "verdict"}
    again = retrain(str(asks_first), return_state=True)
    assert again.result().model_dump() == first.result().model_dump()  # but for which steps were reused

    def states(state: State[Report]) -> list[str]:
        return sorted({str(t.state_name) for t in task_runs(run_of(state)).values()})

    assert states(first) == ["Completed"]
    assert states(again) == ["Cached"]


def test_a_training_whose_release_a_person_must_approve_starts_it_once_and_ends_as_that(asks_first: Path, first: State[Report]) -> None:
    assert (run_of(first).state_name, run_of(first).state_type) == ("AwaitingApproval", StateType.COMPLETED)
    (asking,) = releases_of(asks_first)
    assert f"its release is the run {asking.name!r}" in str(first.message)
    again = retrain(str(asks_first), return_state=True)
    assert run_of(again).state_name == "NothingNew"
    assert len(releases_of(asks_first)) == 1


def test_plans_that_share_a_model_have_a_release_each(asks_first: Path, first: State[Report]) -> None:
    told = [start_release(plan, first.result()) for plan in ("isle", "isle", "deployments/plans/isle.yaml", "isle-for-batches")]
    assert told[0] == told[1] == told[2] != told[3]
    assert str(releases_of(asks_first)[0].name) not in " ".join(told)


def test_a_run_is_named_after_what_came_of_it(location: Path, first: State[Report]) -> None:
    held = run_of(retrain(str(planned(location, gate=1.0)), return_state=True))
    assert (held.state_name, held.state_type) == ("Held", StateType.COMPLETED)
    free = planned(location, gate=1e-9)
    assert run_of(retrain(str(free), return_state=True)).state_name == "Promoted"
    tried = retrain(str(planned(location, gate=2e-9, start="after_retrain")), Overrides(epochs=1), return_state=True)
    assert "not started, since this run has changed the plan" in str(tried.message)


def test_what_a_person_must_mend_is_not_tried_again(location: Path) -> None:
    @flow
    def one() -> None:
        source = SourceConfig(name="isle", export=str(location / "none.json"), images=str(location))
        export_annotations.with_options(retry_delay_seconds=[0, 0]).submit(source).result()

    with pytest.raises(ExportError, match="expected an export at"):
        one()
    with get_client(sync_client=True) as client:
        runs = [t for t in client.read_task_runs() if t.name == "export isle" and t.state_name == "Failed"]
    assert [t.run_count for t in runs] == [1]


def test_what_can_heal_is_tried_again() -> None:
    from prefect import task

    attempts: list[int] = []

    @task(**(PATIENT | {"retry_delay_seconds": [0, 0]}))
    def mends_itself() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise DamagedError("a blob had changed and was removed")
        return len(attempts)

    @flow
    def one() -> int:
        return mends_itself.submit().result()

    assert one() == 3
