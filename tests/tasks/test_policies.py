"""Which errors are retried: those that say so themselves, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import Task, flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed, Failed

from animl_pipeline.config import SourceConfig
from animl_pipeline.core import errors
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import DamagedError, ExportError, PipelineError, StoreUnreachableError
from tasks.dataset import export_annotations
from tasks.step_tasks_and_retries import LONG_WAIT, REMOTE_WORK, Policy, is_retryable, step_task
from tasks.store_and_data_paths import resolve_run_paths
from tests.support.prefect_server import PREFECT_TEST
from tests.support.tiny_project import write_project

pytestmark = PREFECT_TEST

AT_ONCE: Policy = REMOTE_WORK | {"retry_delay_seconds": [0, 0]}
OTHER_RETRYABLE = {"TrainingInterruptedError", "DamagedError"}
"""Retryable classes besides those whose name says that something cannot be reached."""


def error_tree(root: type[PipelineError] = PipelineError) -> Iterator[type[PipelineError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_tree(child)


def retried(error: Exception) -> bool:
    run = TaskRun(task_key="k", dynamic_key="0", name="step", flow_run_id=uuid4())
    return is_retryable(Task(lambda: None), run, Failed(data=error))


@pytest.mark.parametrize("kind", list(error_tree()), ids=lambda kind: kind.__name__)
def test_an_error_is_retried_only_if_its_class_says_so(kind: type[PipelineError]) -> None:
    assert kind.retryable == (kind.__name__.endswith("UnreachableError") or kind.__name__ in OTHER_RETRYABLE)
    assert retried(kind("not now")) == kind.retryable


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug"), KeyError("a bug"), OSError("a disk")], ids=lambda e: type(e).__name__)
def test_unknown_exceptions_are_not_retried(error: Exception) -> None:
    assert not retried(error)


def test_what_went_well_is_not_retried() -> None:
    run = TaskRun(task_key="k", dynamic_key="0", name="step", flow_run_id=uuid4())
    assert not is_retryable(Task(lambda: None), run, Completed(data=1))


def attempts_until_the_end(error: Exception, *, succeeds_at: int = 99) -> int:
    """How often a flow runs a task that raises an error until its n-th attempt."""
    attempts: list[int] = []

    @task(**AT_ONCE)
    def step() -> None:
        attempts.append(1)
        if len(attempts) < succeeds_at:
            raise error

    @flow
    def one_step() -> None:
        step.submit().result()

    if succeeds_at < 99:
        one_step()
    else:
        with pytest.raises(type(error)):
            one_step()
    return len(attempts)


def test_a_flow_runs_a_faulty_task_once_and_a_damaged_file_is_tried_until_it_is_made_again() -> None:
    assert attempts_until_the_end(TypeError("a bug")) == 1
    assert attempts_until_the_end(DamagedError("a blob had changed and was removed"), succeeds_at=3) == 3


def test_an_export_that_does_not_exist_is_not_tried_again(tmp_path: Path) -> None:
    source = SourceConfig(name="none", export=str(tmp_path / "none.json"), images=str(tmp_path))

    @flow
    def one_step() -> None:
        export_annotations.with_options(retry_delay_seconds=[0, 0]).submit(source, resolve_run_paths(str(tmp_path / "store"))).result()

    with pytest.raises(ExportError):
        one_step()
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_task_runs() if run.name == "export none" and run.state_name == "Failed"]
    assert [run.run_count for run in runs] == [1]


def test_a_store_that_cannot_be_reached_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in (settings | {"AWS_DEFAULT_REGION": "us-east-1", "ANIML_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    write_project(tmp_path, locations=1, each=1)
    source = SourceConfig(name="away", export=str(tmp_path / "export.json"), images=str(tmp_path / "images"))

    @flow
    def one_step() -> None:
        export_annotations.with_options(retry_delay_seconds=[0, 0]).submit(source, resolve_run_paths("s3://nowhere/store")).result()

    with pytest.raises(StoreUnreachableError):
        one_step()
    with get_client(sync_client=True) as client:
        runs = [run for run in client.read_task_runs() if run.name == "export away" and run.state_name == "Failed"]
    assert [run.run_count for run in runs] == [3]


def test_a_step_that_the_store_had_is_shown_as_cached() -> None:
    @step_task("demo", "demo {cached}")
    def step(cached: bool) -> Artifact:
        return Artifact(step="demo", key="0" * 64, digest="0" * 64, counts=Counts(kept=3), cached=cached)

    @flow
    def two_steps() -> list[str]:
        runs = [step.submit(False), step.submit(True)]
        assert [run.result().counts.kept for run in runs] == [3, 3]
        return [str(run.state.name) for run in runs]

    assert two_steps() == ["Completed", "Cached"]


def test_a_question_to_animl_waits_for_an_hour() -> None:
    assert LONG_WAIT["retries"] == len(LONG_WAIT["retry_delay_seconds"])
    assert sum(LONG_WAIT["retry_delay_seconds"]) >= 3600
