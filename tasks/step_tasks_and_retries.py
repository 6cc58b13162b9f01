"""Retry policies by the kind of work (which errors are retried, how often, after how long), and a Prefect task for a step.

Prefect caches nothing here. It cannot tell that a cached artifact was deleted, so the step cache alone decides what is reused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypedDict, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError

P = ParamSpec("P")


class Policy(TypedDict, total=False):
    """Options of ``prefect.task`` that a policy sets."""

    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: Callable[[Task[..., Any], TaskRun, State[Any]], bool]
    cache_policy: Any
    persist_result: bool


def is_retryable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may help: only if the error itself says so. Unknown exceptions are not retried."""
    try:
        state.result(raise_on_failure=True)
    except PipelineError as e:
        return e.retryable
    except Exception:  # noqa: BLE001 - a fault in the code fails again
        return False
    return False


LOCAL_WORK: Policy = {"cache_policy": NO_CACHE, "persist_result": False, "retries": 0}
"""Work on this machine alone. What fails would fail again."""

REMOTE_WORK: Policy = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    "retry_condition_fn": is_retryable,
}
"""Work with a store, a host or AWS. Every step is of this kind, because the store may be a bucket."""

LONG_WAIT: Policy = REMOTE_WORK | {"retries": 6, "retry_delay_seconds": [60, 300, 600, 900, 900, 900]}
"""A question to a service that may be away for an hour, while no request waits for the answer."""


def step_task(name: str, run_name: str = "", policy: Policy = REMOTE_WORK) -> Callable[[Callable[P, Artifact]], Task[..., Artifact]]:
    """Make a task of a function that returns a step's artifact. Prefect shows it as Cached if the store had the artifact.

    The task takes futures of other tasks in place of their artifacts; so its arguments have no types.

    ``run_name``: the template of its runs' names, which may use the function's arguments; "" for ``name``.
    """

    def decorate(function: Callable[P, Artifact]) -> Task[..., Artifact]:
        @functools.wraps(function)
        def run_step(*args: P.args, **kwargs: P.kwargs) -> Artifact:
            artifact = function(*args, **kwargs)
            state: State[Artifact] = Completed(name="Cached" if artifact.cached else "Completed", message=str(artifact.counts), data=artifact)
            return cast("Artifact", state)  # Prefect gives the caller the state's data

        return task(name=name, task_run_name=run_name or name, **policy)(run_step)

    return decorate
