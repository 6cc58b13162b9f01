"""Flows and tasks on Prefect's real server: what the UI shows, what is retried and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.testing.utilities import prefect_test_harness

from animl_pipeline.errors import DamagedError, ExportError
from animl_pipeline.plan import SourcePlan
from flows.retrain import retrain
from tasks.dataset import export_annotations
from tasks.policies import PATIENT
from tests.island import write_island

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, as this process's store and cache."""
    monkeypatch.setenv("ANIML_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ANIML_CACHE", str(tmp_path / "cache"))
    return tmp_path


def task_runs(run: FlowRun) -> dict[str, TaskRun]:
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return {t.name: t for t in found}


def artifact_keys() -> set[str]:
    wanted = ["kept-and-dropped", "scores", "verdict"]
    with get_client(sync_client=True) as client:
        return {str(a.key) for a in client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=wanted)))}


def test_a_run_leaves_its_tables_in_the_ui_and_a_second_one_is_shown_as_cached(place: Path) -> None:
    plan = write_island(place / "island")
    first = retrain(str(plan), return_state=True)
    assert artifact_keys() == {"kept-and-dropped", "scores", "verdict"}
    again = retrain(str(plan), return_state=True)
    assert again.result().model_dump() == first.result().model_dump()  # but for which steps were reused

    def states(state: object) -> list[str]:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(state.state_details.flow_run_id)  # type: ignore[attr-defined]
        return sorted({str(t.state_name) for t in task_runs(run).values()})

    assert states(first) == ["Completed"]
    assert states(again) == ["Cached"]


def test_what_a_person_must_mend_is_not_tried_again(place: Path) -> None:
    @flow
    def one() -> None:
        source = SourcePlan(name="isle", export=str(place / "none.json"), images=str(place))
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
