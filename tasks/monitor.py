"""Tasks that read from Animl how the model in service does, and judge it."""

from __future__ import annotations

from datetime import UTC, datetime, time

from prefect import task

from animl_pipeline.config import Plan, SourceConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.deploy.release_history import release_records, served_versions
from animl_pipeline.deploy.resource_names import animl_model_id
from animl_pipeline.steps import monitor as monitor_step
from animl_pipeline.steps.labels.class_mapping import EMPTY, map_labels
from animl_pipeline.steps.labels.read_taxonomy import read_taxonomy
from animl_pipeline.steps.monitor import ServedModel, ServiceLabels, ServiceStatus
from tasks.step_tasks_and_retries import REMOTE_WORK, step_task
from tasks.store_and_data_paths import RunPaths

UNKNOWN_VERSION = "unknown"
"""The version that serves where the plan says since when, and the store has no release."""
ANNOUNCED = "monitor/{model}/announced.txt"
"""The object that lists the alarms for which events were sent, one a line."""


@task(name="served versions", task_run_name="served versions {plan.model}", **REMOTE_WORK)
def find_served_versions(plan: Plan, paths: RunPaths) -> tuple[tuple[datetime, str], ...]:
    """Since when which version serves; empty if no release of the model is known."""
    served = served_versions(release_records(plan, paths.open_store()))
    if plan.monitor.since is None:
        return served
    since = datetime.combine(plan.monitor.since, time(), UTC)
    before = [version for start, version in served if start <= since]
    return ((since, before[-1] if before else UNKNOWN_VERSION), *((start, version) for start, version in served if start > since))


@task(name="labels", task_run_name="labels {source.name}", **REMOTE_WORK)
def read_labels(source: SourceConfig, added_since: datetime, random_tag: str | None, paths: RunPaths) -> ServiceLabels:
    """Ask Animl for labels of a source that are new, and keep them in the store."""
    return monitor_step.read_service_labels(source, added_since, random_tag, paths.open_store(), paths.settings())


@step_task("monitor", "monitor {plan.model}")
def judge_service(plan: Plan, labels: list[ServiceLabels], served: tuple[tuple[datetime, str], ...], paths: RunPaths) -> Artifact:
    """Compute the figures of the model in service, its alarms and its page."""
    store, settings = paths.open_store(), paths.settings()
    taxonomy, meanings = read_taxonomy(plan.labels, settings), dict[str, str]()
    for part in reversed(labels):  # of two sources that use a label differently, the first one counts
        found = map_labels(plan.labels, part.source, taxonomy)
        meanings |= {label: "" for label, meaning in found.others.items() if meaning == EMPTY} | found.classes
    model = ServedModel(
        model_id=animl_model_id(plan), classes=(*plan.labels.classes, *plan.labels.parents), equivalents=plan.labels.equivalents,
        parents=plan.labels.parents, meanings=meanings, served=tuple((start.timestamp(), version) for start, version in served),
        sequence_gap_s=plan.production.sequence_gap_seconds if plan.production else 3,
    )  # fmt: skip
    random_images = monitor_step.read_random_sample(plan.model, store)
    day = max(part.asked for part in labels).astimezone(UTC).date()
    return monitor_step.monitor_service(labels, model, plan.model, plan.thresholds.invasive, random_images, plan.monitor, day, store)


@task(name="new alarms", task_run_name="new alarms {status.model}", **REMOTE_WORK)
def find_new_alarms(status: ServiceStatus, paths: RunPaths) -> tuple[str, ...]:
    """The keys of lasting alarms for which no event was sent yet."""
    known = (paths.open_store().object_store.read(ANNOUNCED.format(model=status.model)) or b"").decode().splitlines()
    return tuple(key for key in status.lasting if key not in known)


@task(name="remember alarms", task_run_name="remember alarms {model}", **REMOTE_WORK)
def remember_alarms(model: str, keys: tuple[str, ...], paths: RunPaths) -> None:
    """Note that events were sent for alarms."""
    store, name = paths.open_store().object_store, ANNOUNCED.format(model=model)
    store.put(name, (store.read(name) or b"") + "".join(f"{key}\n" for key in keys).encode())
