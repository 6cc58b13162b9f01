"""Put the deployments on a Prefect server, and report new validated images to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from animl_pipeline.cli.prefect_connection import check_server
from animl_pipeline.config.settings import DEPLOYMENTS, load_settings
from animl_pipeline.core.errors import PlanError, SettingsError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
from animl_pipeline.cli.prefect_up import POOL


def deploy(environment: Mapping[str, str] | None = None) -> None:
    """Put the work pool, the deployments and the automations on the server of PREFECT_API_URL, or update them there.

    They come from prefect.yaml and automations.yaml beside the folder of plans, or else as they are shipped.

    Args:
        environment: of the prefect commands that do it; None: this process's.

    Raises:
        SettingsError: the server does not answer, or Prefect refused something; the message holds its last lines.
    """
    from flows.automations import put_automations

    settings = load_settings()
    own = settings.plans.parent
    deployments = own if (own / "prefect.yaml").exists() else DEPLOYMENTS
    check_server()
    _prefect(deployments, environment, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect(deployments, environment, "deploy", "--all", "--prefect-file", str(deployments / "prefect.yaml"))
    put_automations(deployments / "automations.yaml", settings.notification_block)


def notify(plan: str, changes: Mapping[str, object], batch: str) -> None:
    """Send the Prefect server the event ``animl.images.validated``.

    Only the server's run can check the plan's file. A plan that no training is deployed for is refused here.

    Raises:
        PlanError: an argument is not valid, or the server has no deployment ``retrain/<plan>``; the message lists those it has.
        SettingsError: no server is set, or it does not take the event.
    """
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource

    from flows.watch import parse_event

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

    from flows.watch import deployment_name

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


def _prefect(deployments: Path, environment: Mapping[str, str] | None, *arguments: str) -> None:
    """Run a prefect command beside the folder of deployments: that folder becomes the runs' working directory."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=deployments.resolve().parent, env=environment)
    if done.returncode:
        last_lines = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise SettingsError(f"`prefect {' '.join(arguments)}` failed: {last_lines}")
