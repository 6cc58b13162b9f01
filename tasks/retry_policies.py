"""Retry policies by the kind of work: which errors are retried, how often, after how long.

Prefect caches nothing here. It cannot tell that a cached artifact was deleted, so the step cache alone decides what is reused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from animl_pipeline.core.errors import PipelineError


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
