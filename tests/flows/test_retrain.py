"""The flow retrain on a real Prefect server: what the UI shows, the state in which it ends, and what runs side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
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
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ExportError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.deploy.trained_versions import last_training_start, read_latest_report, read_report, trained_versions
from animl_pipeline.steps import export as export_step
from animl_pipeline.steps import images as images_step
from animl_pipeline.storage.store import open_store
from flows.progress_artifacts import describe_time_left
from flows.release import release
from flows.retrain import retrain, start_release
from tests.support.prefect_server import PREFECT_TEST
from tests.support.tiny_project import write_plan, write_project

pytestmark = PREFECT_TEST


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is this process's store and cache while these tests run."""
    folder = tmp_path_factory.mktemp("folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANIML_STORE", str(folder / "store"))
        patch.setenv("ANIML_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def plan_with_approval(folder: Path, prefect: str) -> Path:
    """A plan whose trainings start a release, which a person must approve."""
    for plan in ("plan", "isle", "isle-for-batches"):
        release.to_deployment(name=plan).apply()  # type: ignore[union-attr]  # a coroutine only in async code
    write_project(folder / "island")
    return change_plan(folder, approval="required", start="after_retrain")


@pytest.fixture(scope="module")
def first(plan_with_approval: Path) -> State[Report]:
    """The state in which the first training ended."""
    return retrain(str(plan_with_approval), return_state=True)


def change_plan(folder: Path, gate: float = 0.0, **changes: str) -> Path:
    """The plan with another release and gate. Everything up to the model stays as it was made."""
    lenient = {"min_examples": 1, "min_locations": 1, "max_macro_f1_drop": 1.0, "min_macro_f1": gate}
    return write_plan(folder / "island", gate=lenient, release={"memory_mb": 1024, "max_concurrency": 2, "timeout_s": 60} | changes)


def releases_of(plan: Path) -> list[FlowRun]:
    """The runs of `release` for a plan."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"release/{plan.stem}")
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])))
    return [run for run in runs if run.parameters["plan"] == str(plan)]


def task_runs(run: FlowRun) -> dict[str, TaskRun]:
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return {t.name: t for t in found}


@pytest.mark.parametrize(
    ("seconds", "done", "left", "said"), [(60, 10, 30, "3 min"), (1, 10, 5, "1 min"), (3600, 1, 10, "10.0 h"), (9, 0, 5, ""), (9, 5, 0, "")]
)
def test_progress_says_how_much_time_is_left(seconds: float, done: int, left: int, said: str) -> None:
    found = describe_time_left(seconds, done, left)
    assert said in found
    assert bool(said) == bool(found)


def run_of(state: State[Report]) -> FlowRun:
    """A run as the server knows it."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(cast("UUID", state.state_details.flow_run_id))


def artifacts() -> dict[str, str]:
    """The artifacts of a training with their descriptions, the newest first, as the UI shows them."""
    wanted = ["kept-and-dropped", "scores", "verdict"]
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=wanted)))
    return {str(a.key): str(a.description or "") for a in sorted(found, key=lambda a: str(a.created), reverse=True)}


def test_a_run_leaves_its_tables_in_the_ui_and_a_second_one_is_shown_as_cached(plan_with_approval: Path, first: State[Report]) -> None:
    shown = artifacts()
    assert list(shown) == ["verdict", "scores", "kept-and-dropped"]
    assert all(shown.values())
    again = retrain(str(plan_with_approval), return_state=True)
    assert again.result().model_dump() == first.result().model_dump()  # except for which steps were reused

    def states(state: State[Report]) -> set[str]:
        return {str(t.state_name) for t in task_runs(run_of(state)).values() if t.name not in {"preflight", "report", "results"}}

    assert states(first) == {"Completed"}
    assert states(again) == {"Cached"}


def test_a_training_whose_release_a_person_must_approve_starts_it_once(plan_with_approval: Path, first: State[Report]) -> None:
    assert (run_of(first).state_name, run_of(first).state_type) == ("AwaitingApproval", StateType.COMPLETED)
    (release_run,) = releases_of(plan_with_approval)
    assert repr(release_run.name) in str(first.message)
    again = retrain(str(plan_with_approval), return_state=True)
    assert run_of(again).state_name == "NothingNew"
    assert len(releases_of(plan_with_approval)) == 1


def test_plans_that_share_a_model_have_a_release_each(plan_with_approval: Path, first: State[Report]) -> None:
    started = [start_release(plan, first.result()) for plan in ("isle", "isle", "deployments/plans/isle.yaml", "isle-for-batches")]
    assert started[0] == started[1] == started[2] != started[3]
    assert str(releases_of(plan_with_approval)[0].name) not in " ".join(started)


def test_a_run_is_named_after_its_result(folder: Path, first: State[Report]) -> None:
    held = run_of(retrain(str(change_plan(folder, gate=1.0)), return_state=True))
    assert (held.state_name, held.state_type) == ("Held", StateType.COMPLETED)
    free = change_plan(folder, gate=1e-9)
    assert run_of(retrain(str(free), return_state=True)).state_name == "Promoted"


def test_a_run_that_changes_the_plan_is_a_trial_and_replaces_nothing(folder: Path, first: State[Report]) -> None:
    plan = change_plan(folder, gate=2e-9, start="after_retrain")
    retrain(str(plan))
    store = open_store(Settings())
    before = (len(releases_of(plan)), read_latest_report("tiny-island", store), last_training_start("tiny-island", store))
    report = retrain(str(plan), Overrides(seed=7))
    assert (len(releases_of(plan)), read_latest_report("tiny-island", store), last_training_start("tiny-island", store)) == before
    assert report.version != before[1].version
    assert read_report("tiny-island", report.version, store).package == report.package
    assert [v.changes for v in trained_versions("tiny-island", store)][-1] == ("train.seed 7",)
    again = retrain(str(plan), Overrides(seed=7), return_state=True)
    assert run_of(again).state_name == "NothingNew"


def test_a_slow_export_does_not_delay_the_images_of_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images_done = threading.Event()
    export, download = export_step.export_annotations, images_step.download_images

    def slow_export(source: SourceConfig, *rest: Any) -> Artifact:
        if source.name == "slow":
            assert images_done.wait(60), "the images of the other source wait for this export"
        return export(source, *rest)

    def record_images(source: SourceConfig, *rest: Any) -> Artifact:
        artifact = download(source, *rest)
        images_done.set()
        return artifact

    monkeypatch.setattr(export_step, "export_annotations", slow_export)
    monkeypatch.setattr(images_step, "download_images", record_images)
    write_project(tmp_path, locations=2, each=1)
    sources = [{"name": name, "export": "export.json", "images": "images"} for name in ("slow", "fast")]
    plan = write_plan(tmp_path, sources=sources)
    state = retrain(str(plan), store=str(tmp_path / "store"), data=str(tmp_path), return_state=True)
    assert images_done.is_set()
    tasks = task_runs(run_of(state))
    assert {tasks[f"{step} {name}"].state_name for step in ("export", "images") for name in ("slow", "fast")} <= {"Completed", "Cached"}


def test_the_first_error_of_a_training_is_its_cause(tmp_path: Path, first: State[Report]) -> None:
    plan = write_plan(tmp_path, sources=[{"name": "isle", "export": "none.json", "images": str(tmp_path)}])
    with pytest.raises(ExportError):
        retrain(str(plan), store=str(tmp_path / "store"), data=str(tmp_path))
