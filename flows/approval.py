"""A person's yes before a release: asked for in Prefect's UI (or its API), given by name, never by silence.

The run that asks is suspended: it holds no process and no place, and goes on when it is answered. What is asked is about one
package; where another one has become the newest meanwhile, an answer is not taken for it, and it is asked anew.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.context import get_run_context
from prefect.events import Event, emit_event
from prefect.exceptions import ObjectNotFound, Pause
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_API_URL, get_current_settings
from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from animl_pipeline.config import Plan
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Report

log = logging.getLogger("animl_pipeline.flows.approval")

DEPLOYMENT = "release/release"
DAY_S = 86_400
HEARD_WITHIN_S = 60.0
WAITS = "animl.run.waits"
"""An event: the run is suspended by intent. The automation for zombies listens for it."""


YesOrNo = Annotated[
    Literal["yes", "no"],
    BeforeValidator(lambda said: said.strip().lower() if isinstance(said, str) else said),
    WithJsonSchema({"type": "string", "pattern": r"^\s*([Yy][Ee][Ss]|[Nn][Oo])\s*$"}),
]
"""Typed, since lists to choose from close by themselves in the window of Prefect's UI that asks."""


class Answer(RunInput):
    """The form in Prefect's UI. Neither question has an answer to begin with, so an empty form is refused."""

    approve: YesOrNo = Field(title="Approve: yes or no", description="yes: it is released now; no: it is not, and this run ends")
    name: str = Field(title="Your name", pattern=r"\S", max_length=200, description="kept in the release's history")
    note: str = Field(default="", title="Note", max_length=2000, description="kept in the history, too; why, where it is no")


def can_be_asked() -> bool:
    """Whether this run can wait for a person: only one of a deployment can, which a server starts again once it is answered."""
    return bool(runtime.deployment.id)


def asked(report: Report, plan: Plan, force: str) -> Answer:
    """A person's answer; until it is there this run is suspended, and the process ends.

    Raises:
        ReleaseError: the run was made to go on without an answer.
    """
    key = f"approval-{report.package.digest[:16]}"
    log.info("waiting for a person to approve the release of %s %s", report.model, report.version)
    form = Answer.with_initial_data(description=question(report, plan, force))
    running_since = get_run_context().flow_run.state.timestamp  # type: ignore[union-attr]  # in a flow
    try:
        return suspend_flow_run(wait_for_input=form, timeout=max(1, round(plan.release.approval_timeout_days * DAY_S)), key=key)
    except Pause:
        _say_so_again(running_since)
        raise
    except ValidationError as e:
        raise ReleaseError(
            "this run was made to go on without an answer, which approves nothing; nothing was released. Start the release again and answer its form"
        ) from e


def _say_so_again(since: datetime) -> None:
    """Tell the server once more that this run is suspended, as a thing that follows the run's last heartbeat.

    It hears of the suspension before it hears of that heartbeat, would then wait in vain for another one, and take the run
    for dead (the automation for zombies). Of two events that come close together it may also take the second one first,
    unless that one says what it follows.
    """
    if get_current_settings().flows.heartbeat_frequency is None:
        return
    resource = f"prefect.flow-run.{runtime.flow_run.id}"
    emit_event(WAITS, resource={"prefect.resource.id": resource}, follows=_last_heartbeat(resource, since))


def _last_heartbeat(resource: str, since: datetime) -> Event | None:
    """The newest heartbeat of a run as the server knows it; None where it has not heard of one within ``HEARD_WITHIN_S``."""
    events = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [resource]}, "occurred": {"since": since.isoformat()}}
    with get_client(sync_client=True) as client:
        asking = Retrying(stop=stop_after_delay(HEARD_WITHIN_S), wait=wait_fixed(0.5), retry=retry_if_result(lambda heard: not heard))
        try:
            heard = asking(lambda: client.request("POST", "/events/filter", json={"filter": events, "limit": 1}).json()["events"])
        except RetryError:
            log.warning("expected the server to hear of this run within %.0f s; it may take it for dead while it waits", HEARD_WITHIN_S)
            return None
    return Event.model_validate({name: heard[0][name] for name in ("id", "occurred", "event", "resource")})


def question(report: Report, plan: Plan, force: str) -> str:
    """What is asked, as Markdown: the version, where it goes, what the report says of it."""
    endpoints = " and ".join(f"`{e.endpoint}`" for e in plan.release.endpoints(plan.model, report.version))
    lines = [f"## Release {report.model} {report.version} to {endpoints}?", report.headline]
    if force:
        lines.append(f"**The verdict is not to promote.** It shall be released all the same: {force}")
    lines += [f"- {reason}" for reason in report.reasons]
    scores = [f"| {c.id} | {c.examples} | {c.precision:.2f} | {c.recall:.2f} |" for c in report.metrics.classes]
    lines.append("\n".join(["| class | test crops | precision | recall |", "|---|--:|--:|--:|", *scores]))
    return "\n\n".join(lines)


def start_release(plan_name: str, report: Report) -> str:
    """Start the release of a trained model on the Prefect server, once a package; a line that says what came of it."""
    if not PREFECT_API_URL.value():
        return "its release was not started, since no Prefect server is set; release it by hand"
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            log.warning("expected the deployment %r on the Prefect server, found none; `animl-pipeline deploy` puts it there", DEPLOYMENT)
            return f"its release was not started: the server has no deployment {DEPLOYMENT!r}"
        key = f"release/{Path(plan_name).stem}/{report.model}/{report.package.digest}"  # plans may share a model, not their endpoints
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"plan": plan_name}, idempotency_key=key, tags=["after-retrain"])
    return f"its release is the run {run.name!r}"
