"""How often and how long: retries and caching, named once.

The store is the truth of what is made already (Prefect cannot tell that a cached artifact was deleted), so tasks carry no
cache of Prefect's; a step that the store answered is shown as ``Cached``.
"""

from __future__ import annotations

from typing import Any, TypedDict

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from animl_pipeline.core.errors import PipelineError
from animl_pipeline.core.records import Artifact


class Policy(TypedDict, total=False):
    """Options of ``prefect.task`` that a policy sets."""

    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: Any
    cache_policy: Any
    persist_result: bool


def is_retryable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may help: not where a person must mend the plan, the data or the settings."""
    try:
        state.result(raise_on_failure=True)
    except PipelineError as e:
        return e.retryable
    except Exception:  # noqa: BLE001 - anything unforeseen may be a passing fault of a machine or a service
        return True
    return False


ONCE: Policy = {"cache_policy": NO_CACHE, "persist_result": False, "retries": 0}
"""Work on this machine: what fails fails again."""

PATIENT: Policy = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    "retry_condition_fn": is_retryable,
}
"""Work with other machines, or on what the store may have lost."""


PERSISTENT: Policy = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 6,
    "retry_delay_seconds": [60, 300, 600, 900, 900, 900],
    "retry_condition_fn": is_retryable,
}
"""A question to a service that may be away for an hour, and that nobody waits for."""


def shown(artifact: Artifact) -> Any:
    """What a task returns for its step: the artifact, and the state ``Cached`` where the store had it."""
    if artifact.cached:
        return Completed(name="Cached", message=str(artifact.counts), data=artifact)
    return Completed(message=str(artifact.counts), data=artifact)
