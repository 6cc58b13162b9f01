"""A person's approval before a release, asked for in Prefect's UI or API. Silence approves nothing.

The run that asks is suspended: it uses no process and no concurrency slot, and goes on when it is answered. The question is
about one package. If another package has become the latest meanwhile, the answer does not count, and the run asks again.
"""

from __future__ import annotations

import logging
from datetime import datetime

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.context import get_run_context
from prefect.events import Event, emit_event
from prefect.exceptions import Pause
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.settings import get_current_settings
from pydantic import Field, ValidationError
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from animl_pipeline.config import Plan
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.evaluation_results import Report

log = logging.getLogger("animl_pipeline.flows.approval")

DAY_S = 86_400
HEARTBEAT_WITHIN_S = 60.0
WAITING_EVENT = "animl.run.waits"
"""An event: the run is suspended on purpose. The automation for dead runs listens for it."""


class Answer(RunInput):
    """The form in Prefect's UI. The name has no default, so an empty form is refused. A switch, because lists close by themselves there."""

    approve: bool = Field(default=False, title="Approve", description="on: release it now; off: do not release it, and end this run")
    name: str = Field(title="Your name", pattern=r"\S", max_length=200, description="kept in the history of releases")
    note: str = Field(default="", title="Note", max_length=2000, description="kept in the history, too; why, if the answer is no")


def can_ask() -> bool:
    """Whether this run can wait for a person. Only the run of a deployment can: a worker starts it again once it is answered."""
    return bool(runtime.deployment.id)


def wait_for_answer(report: Report, plan: Plan, question: str) -> Answer:
    """A person's answer. Until there is one, this run is suspended and its process ends.

    ``report``: of the package; the answer counts for this package only.

    Raises:
        ReleaseError: the run was resumed without an answer.
    """
    key = f"approval-{report.package.digest[:16]}"
    log.info("waiting for a person to approve the release of %s %s", report.model, report.version)
    form = Answer.with_initial_data(description=question)
    running_since = get_run_context().flow_run.state.timestamp  # type: ignore[union-attr]  # called in a flow
    try:
        return suspend_flow_run(wait_for_input=form, timeout=max(1, round(plan.release.approval_timeout_days * DAY_S)), key=key)
    except Pause:
        _report_waiting(running_since)
        raise
    except ValidationError as e:
        raise ReleaseError(
            "this run was resumed without an answer, which approves nothing; nothing was released. Start the release again and answer its form",
            code="not_answered",
        ) from e


def _report_waiting(running_since: datetime) -> None:
    """Tell the server once more that this run is suspended, with an event that follows the run's last heartbeat.

    The server learns of the suspension before it learns of the last heartbeat. It would then wait in vain for another heartbeat,
    and the automation for dead runs would mark this one as crashed. The server may also read two close events in the wrong
    order, unless the second one names the first.
    """
    if get_current_settings().flows.heartbeat_frequency is None:
        return
    resource = f"prefect.flow-run.{runtime.flow_run.id}"
    emit_event(WAITING_EVENT, resource={"prefect.resource.id": resource}, follows=_last_heartbeat(resource, running_since))


def _last_heartbeat(resource: str, since: datetime) -> Event | None:
    """The latest heartbeat of a run that the server knows; None if it knows none within ``HEARTBEAT_WITHIN_S``."""
    events = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [resource]}, "occurred": {"since": since.isoformat()}}
    with get_client(sync_client=True) as client:
        ask = Retrying(stop=stop_after_delay(HEARTBEAT_WITHIN_S), wait=wait_fixed(0.5), retry=retry_if_result(lambda found: not found))
        try:
            found = ask(lambda: client.request("POST", "/events/filter", json={"filter": events, "limit": 1}).json()["events"])
        except RetryError:
            log.warning("the server knows no heartbeat of this run after %.0f s; it may mark the run as crashed while it waits", HEARTBEAT_WITHIN_S)
            return None
    return Event.model_validate({name: found[0][name] for name in ("id", "occurred", "event", "resource")})
