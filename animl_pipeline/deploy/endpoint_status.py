"""The present state of a plan's endpoints: SageMaker's description, together with the release history."""

from __future__ import annotations

from animl_pipeline.config import Plan, PlannedEndpoint
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.deploy.aws_api import AwsApi, EndpointState
from animl_pipeline.deploy.release_history import History, read_records, release_of_config, release_records
from animl_pipeline.deploy.resource_names import switched_parameter
from animl_pipeline.storage.store import Store


class EndpointStatus(EndpointState):
    """An endpoint's state together with its history. ``status`` is "absent" and ``endpoint_config`` "" if it does not exist.

    ``version`` is None if this pipeline did not release the config. ``unfinished`` means that a release is running or was killed.
    """

    purpose: str
    endpoint: str
    version: str | None
    unfinished: bool


def realtime_status(plan: Plan, store: Store, settings: Settings) -> EndpointStatus:
    """The status of the plan's realtime endpoint."""
    return endpoint_statuses(plan, store, settings)[0]


def endpoint_statuses(plan: Plan, store: Store, settings: Settings) -> tuple[EndpointStatus, ...]:
    """The status of each endpoint of the plan, realtime first."""
    aws = AwsApi()
    return tuple(_status(aws, planned, plan, store, settings) for planned in plan.release.endpoints(plan.model))


def deployed_package(plan: Plan, store: Store, settings: Settings) -> Artifact | None:
    """The package behind the plan's realtime endpoint; None if there is none, or if this pipeline did not release it."""
    now = realtime_status(plan, store, settings)
    release = release_of_config(now.endpoint_config, release_records(plan, store)) if now.endpoint_config else None
    return release.package if release else None


def current_endpoint(
    aws: AwsApi, planned: PlannedEndpoint, history: History, parameter: str | None, timeout_s: float = 0
) -> tuple[str, EndpointState | None]:
    """Name and state of the endpoint that answers now: the planned name, or the value of the SSM parameter.

    With ``timeout_s``, waits first until no update is in progress.
    """
    name = planned.endpoint
    if parameter is not None:
        name = aws.parameter(parameter) or next((r.endpoint for r in reversed(history) if r.state == "done"), name)
    return name, aws.wait_until_stable(name, timeout_s) if timeout_s else aws.endpoint_state(name)


def _status(aws: AwsApi, planned: PlannedEndpoint, plan: Plan, store: Store, settings: Settings) -> EndpointStatus:
    history = read_records(planned.base_name, store)
    name, state = current_endpoint(aws, planned, history, switched_parameter(plan, planned, settings))
    release = release_of_config(state.endpoint_config, history) if state else None
    now = state or EndpointState(status="absent", endpoint_config="")
    unfinished = any(r.state == "begun" for r in history)
    version = release.version if release else None
    return EndpointStatus(**now.model_dump(), purpose=planned.purpose, endpoint=name, version=version, unfinished=unfinished)
