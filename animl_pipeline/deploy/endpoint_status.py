"""How the plan's endpoints are now, as SageMaker and the history know it."""

from __future__ import annotations

from animl_pipeline.config import EndpointConfig, Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Artifact, Record
from animl_pipeline.deploy.endpoint_names import switched_parameter
from animl_pipeline.deploy.history import records_of, release_history, released
from animl_pipeline.deploy.rollback import present
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.storage.step_cache import Store


class EndpointStatus(Record):
    """An endpoint. ``status`` is "absent" where there is none; ``coming`` is the config of an update that is under way."""

    purpose: str
    endpoint: str
    status: str
    endpoint_config: str | None
    coming: str
    failure_reason: str
    version: str | None
    unfinished: bool


def endpoint_status(plan: Plan, store: Store, settings: Settings) -> EndpointStatus:
    """How the plan's (first) endpoint is now, and whether a release of it is unfinished."""
    return endpoints_status(plan, store, settings)[0]


def endpoints_status(plan: Plan, store: Store, settings: Settings) -> tuple[EndpointStatus, ...]:
    """How each of the plan's endpoints is now, realtime first."""
    aws = Aws()
    return tuple(_status(aws, where, plan, store, settings) for where in plan.release.endpoints(plan.model))


def served_package(plan: Plan, store: Store, settings: Settings) -> Artifact | None:
    """The package behind the plan's (first) endpoint, None where none is or where it was not released from here."""
    now = endpoint_status(plan, store, settings)
    known = released(now.endpoint_config, release_history(plan, store)) if now.endpoint_config else None
    return known.package if known else None


def _status(aws: Aws, where: EndpointConfig, plan: Plan, store: Store, settings: Settings) -> EndpointStatus:
    history = records_of(where.line, store)
    name, state = present(aws, where, list(history), switched_parameter(plan, where, settings))
    known = released(state.endpoint_config, history) if state else None
    return EndpointStatus(
        purpose=where.purpose,
        endpoint=name,
        status=state.status if state else "absent",
        endpoint_config=state.endpoint_config if state else None,
        coming=state.coming if state else "",
        failure_reason=state.failure_reason if state else "",
        version=known.version if known else None,
        unfinished=any(r.state == "begun" for r in history),
    )
