"""Monitor: compare the model's labels in Animl with what people validated since, and say when it becomes worse."""

from __future__ import annotations

import logging
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from animl_pipeline.config import Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import PlanError
from animl_pipeline.core.untrusted_text import escape_markdown
from animl_pipeline.steps.monitor import PAGE_FILE, ServiceStatus, read_status
from flows.end_states import end_as
from flows.start_training_when_validated import start_training_once
from flows.stop_signals import prepare_run
from tasks import monitor as tasks
from tasks.store_and_data_paths import RunPaths, resolve_run_paths

log = logging.getLogger("animl_pipeline.flows.monitor")

DEGRADED_EVENT = "animl.model.degraded"


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
    artifact = tasks.judge_service.submit(checked, [part.result() for part in labels], served, paths).result()
    status, reports = read_status(artifact, paths.open_store()), load_settings().reports_url.rstrip("/")
    if reports:
        status = status.model_copy(update={"page": f"{reports}/steps/{artifact.step}/{artifact.key}/{PAGE_FILE}"})
    _show(status)
    return end_as(status.state, f"{status.headline} {_announce(status, plan, checked, store, paths)}{status.page}", status)


def _announce(status: ServiceStatus, plan: str, checked: Plan, store: str, paths: RunPaths) -> str:
    """Send the event of new alarms, and start a training if the plan says so; a sentence about the training comes back."""
    new = tasks.find_new_alarms.submit(status, paths).result()
    if not new:
        return ""
    payload: dict[str, Any] = {"plan": plan, "headline": status.headline, "sentences": list(status.sentences), "alarms": list(new)}
    resource = {"prefect.resource.id": f"animl.model.{status.model}"}
    emit_event(DEGRADED_EVENT, resource=resource, payload=payload, id=uuid5(NAMESPACE_URL, f"{status.model} {new}"))  # again after a kill: the same
    said = ""
    if checked.monitor.start_training:
        started = start_training_once(plan, checked, f"alarm/{new[-1]}", status.headline, store)
        said = f"{started.name}: {started.message}. "
    tasks.remember_alarms.submit(status.model, new, paths).result()
    return said


def _show(status: ServiceStatus) -> None:
    """Put the result among the run's artifacts."""
    lines = [f"## {status.model}: {status.state}", f"**{escape_markdown(status.headline)}**"]
    lines += ["\n".join(f"- {escape_markdown(line)}" for line in part) for part in (status.sentences, status.warnings) if part]
    page = f"[the page with all figures]({status.page})" if status.page.startswith("http") else f"the page with all figures: `{status.page}`"
    lines.append(f"Read {page}")
    create_markdown_artifact(key="monitor", markdown="\n\n".join(lines), description="How the model in service does")
