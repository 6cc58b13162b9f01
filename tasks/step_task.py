"""Make a Prefect task from a step; a cached artifact shows as the state Cached."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, cast

from prefect import Task, task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from animl_pipeline.core.artifacts import Artifact
from tasks.retry_policies import REMOTE_WORK, Policy

P = ParamSpec("P")


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
