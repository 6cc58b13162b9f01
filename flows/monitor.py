"""Monitor: compare the model's labels in Animl with what people validated since, and say when it becomes worse."""

from __future__ import annotations

import logging
from datetime import UTC
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from animl_pipeline.config import Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.untrusted_text import escape_markdown
from animl_pipeline.steps.monitor import PAGE_FILE, REVIEW_PAGE, ServiceStatus, UnreviewedLook, read_status
from animl_pipeline.steps.monitor.unreviewed_look import Stranger
from flows.end_states import end_as
from flows.start_training_when_validated import start_training_once
from flows.stop_signals import prepare_run
from tasks import monitor as tasks
from tasks.store_and_data_paths import RunPaths, resolve_run_paths

log = logging.getLogger("animl_pipeline.flows.monitor")

DEGRADED_EVENT = "animl.model.degraded"
DELIVERED_WITHIN_S = 30.0
MAX_STRANGERS = 10
"""Suspected strangers among the run's artifacts; the page has more."""


@flow(name="monitor", flow_run_name="monitor {plan}", persist_result=False)
def monitor(plan: str, store: str = "") -> ServiceStatus:
    """Ask Animl what people validated since the last look, and judge the model in service.

    The run ends as Healthy, Degraded or NotEnoughReviewed; none of them is a failure. For each new alarm the event
    `animl.model.degraded` is sent once, and a training is started if the plan says so.

    Args:
        plan: name of a plan in deployments/plans, such as santa-cruz-island, or the path of its YAML file.
        store: folder or s3://bucket/prefix for all that steps make; empty: ANIML_STORE of the worker.
    """
    prepare_run()
    checked, paths = load_plan(find_plan(plan, load_settings().plans)), resolve_run_paths(store)
    projects = [source for source in checked.sources if source.project() is not None]
    if not projects:
        raise PlanError(
            f"the plan of {checked.model}: expected a source with `export: animl://<project id>` to monitor, found files only; name the project "
            "in the plan (docs/monitor.md)",
            code="no_project",
        )
    served = tasks.find_served_versions.submit(checked, paths).result()
    if not served:
        headline = "The store has no release of this model; release it, or set monitor.since in the plan"
        nothing = ServiceStatus(model=checked.model, state="NotEnoughReviewed", headline=headline)
        return end_as(nothing.state, headline, nothing)
    labels = [tasks.read_labels.submit(s, served[0][0], checked.monitor.random_tag, paths) for s in projects]
    read = [part.result() for part in labels]
    day = max(part.asked for part in read).astimezone(UTC).date()
    look = tasks.look_at_unreviewed.submit(checked, served[-1][1], day, paths).result(raise_on_failure=False)
    if isinstance(look, BaseException):  # the figures do not depend on it
        log.warning("the unreviewed images could not be looked at: %s", look)
        look = UnreviewedLook(said=f"Strangers and the embedding could not be looked at: {look}")
    artifact = tasks.judge_service.submit(checked, read, served, day, look, paths).result()
    status, reports = read_status(artifact, paths.open_store()), load_settings().reports_url.rstrip("/")
    if reports:
        folder = f"{reports}/steps/{artifact.step}/{artifact.key}"
        pages = {"page": f"{folder}/{PAGE_FILE}", "review_page": f"{folder}/{REVIEW_PAGE}" if status.review_page else ""}
        status = status.model_copy(update=pages)
    _show(status)
    return end_as(status.state, f"{status.headline} {_announce(status, plan, checked, store, paths)}{status.page}", status)


def _announce(status: ServiceStatus, plan: str, checked: Plan, store: str, paths: RunPaths) -> str:
    """Send the event of new alarms, and start a training if the plan says so; a sentence about the training comes back."""
    said = ""
    for alarm in tasks.find_new_alarms.submit(status, paths).result():
        payload: dict[str, Any] = {"plan": plan, "headline": status.headline, "sentences": list(status.sentences), "alarms": [alarm]}
        resource = {"prefect.resource.id": f"animl.model.{status.model}"}
        _send_once(event_id(status.model, alarm), resource, payload)
        if checked.monitor.start_training:
            started = start_training_once(plan, checked, f"alarm/{alarm}", status.headline, store)
            said = f"{started.name}: {started.message}. "
        tasks.remember_alarm.submit(status.model, alarm, paths).result()
    return said


def _send_once(event: UUID, resource: dict[str, str], payload: dict[str, Any]) -> None:
    """Send an event unless the server has it, and wait until the server has it: a process may be killed before it is delivered."""
    if _server_has(event):
        return
    emit_event(DEGRADED_EVENT, resource=resource, payload=payload, id=event)
    try:
        Retrying(stop=stop_after_delay(DELIVERED_WITHIN_S), wait=wait_fixed(0.2), retry=retry_if_result(lambda has: not has))(_server_has, event)
    except RetryError:
        log.warning("the server does not show the event of the alarm after %.0f s; its message may not come", DELIVERED_WITHIN_S)


def _server_has(event: UUID) -> bool:
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events/filter", json={"filter": {"id": {"id": [str(event)]}}, "limit": 1})
        return bool(answer.json().get("events"))


def event_id(model: str, alarm: str) -> UUID:
    """The id of an alarm's event: the same after a kill, so that the server keeps one."""
    return uuid5(NAMESPACE_URL, f"{model} {alarm}")


def _show(status: ServiceStatus) -> None:
    """Put the result among the run's artifacts."""
    lines = [f"## {status.model}: {status.state}", f"**{escape_markdown(status.headline)}**"]
    lines += ["\n".join(f"- {escape_markdown(line)}" for line in part) for part in (status.sentences, status.warnings) if part]
    if status.strangers:
        lines += [f"Suspected strangers: {len(status.strangers)}", "\n".join(map(_describe_stranger, status.strangers[:MAX_STRANGERS]))]
    pages = [("the page with all figures", status.page), ("what to review next", status.review_page)]
    lines += [f"[{name}]({page})" if page.startswith("http") else f"{name}: `{page}`" for name, page in pages if page]
    create_markdown_artifact(key="monitor", markdown="\n\n".join(lines), description="How the model in service does")


def _describe_stranger(stranger: Stranger) -> str:
    about = escape_markdown(f"{stranger.location} {stranger.taken}, likeliest {stranger.likeliest}")
    return f"- {about}: [in Animl]({stranger.link})" if stranger.link else f"- {about}: {escape_markdown(stranger.image_id)}"
