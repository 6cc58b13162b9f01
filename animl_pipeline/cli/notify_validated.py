"""Report to a Prefect server that new images were validated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from animl_pipeline.cli.prefect_connection import check_server
from animl_pipeline.core.errors import PlanError, SettingsError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def notify(plan: str, changes: Mapping[str, object], batch: str) -> None:
    """Send the Prefect server the event ``animl.images.validated``.

    Only the server's run can check the plan's file. A plan that no training is deployed for is refused here.

    Raises:
        PlanError: an argument is not valid, or the server has no deployment ``retrain/<plan>``; the message lists those it has.
        SettingsError: no server is set, or it does not take the event.
    """
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource

    from flows.start_training_when_validated import parse_event

    payload = {"plan": plan, "overrides": {k: v for k, v in changes.items() if v is not None}} | ({"batch": batch} if batch else {})
    event = Event(event="animl.images.validated", resource=Resource({"prefect.resource.id": f"animl.project.{Path(plan).stem}"}), payload=payload)
    check_server()
    with get_client(sync_client=True) as client:
        _check_deployed(plan, client)
        parse_event(payload)
        answer = client.request("POST", "/events", json=[event.model_dump(mode="json")])
    if not answer.is_success:
        raise SettingsError(f"the Prefect server at {urlsplit(str(answer.url)).netloc} did not take the event ({answer.status_code})")


def _check_deployed(plan: str, client: SyncPrefectClient) -> None:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName

    from flows.start_training_when_validated import deployment_name

    trainings, name = FlowFilter(name=FlowFilterName(any_=["retrain"])), deployment_name(plan)
    if client.read_deployments(flow_filter=trainings, deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name]))):
        return
    deployed = ", ".join(sorted(d.name for d in client.read_deployments(flow_filter=trainings))) or "no plan"
    raise PlanError(
        f"expected a plan that is deployed on the Prefect server, found {plan!r} (no deployment retrain/{name}); it has: {deployed}. "
        "Nothing was sent",
        code="not_deployed",
        plan=plan,
    )
