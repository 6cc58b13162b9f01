"""Tasks that read from Animl how the model in service does, and judge it."""

from __future__ import annotations

from datetime import date, datetime

from prefect import task

from animl_pipeline.config import Plan, SourceConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.review.model_in_service import Served, served_model, versions_in_service
from animl_pipeline.steps import monitor as monitor_step
from animl_pipeline.steps.monitor import ServiceLabels, ServiceStatus, UnreviewedLook
from tasks.step_tasks_and_retries import REMOTE_WORK, step_task
from tasks.store_and_data_paths import RunPaths

ANNOUNCED = "monitor/{model}/announced.txt"
"""The object that lists the alarms for which events were sent, one a line."""


@task(name="served versions", task_run_name="served versions {plan.model}", **REMOTE_WORK)
def find_served_versions(plan: Plan, paths: RunPaths) -> Served:
    """Since when which version serves; empty if no release of the model is known."""
    return versions_in_service(plan, paths.open_store())


@task(name="labels", task_run_name="labels {source.name}", **REMOTE_WORK)
def read_labels(source: SourceConfig, added_since: datetime, random_tag: str | None, paths: RunPaths) -> ServiceLabels:
    """Ask Animl for labels of a source that are new, and keep them in the store."""
    return monitor_step.read_service_labels(source, added_since, random_tag, paths.open_store(), paths.settings())


@task(name="unreviewed images", task_run_name="unreviewed images {plan.model}", **REMOTE_WORK)
def look_at_unreviewed(plan: Plan, version: str, day: date, paths: RunPaths) -> UnreviewedLook:
    """Look at unreviewed images with the model in service: the next review list, suspected strangers, and the embedding."""
    from animl_pipeline.review.look_for_monitor import look_at_unreviewed as look  # reads images, which few monitors do

    return look(plan, version, day, paths.open_store(), paths.settings())


@step_task("monitor", "monitor {plan.model}")
def judge_service(plan: Plan, labels: list[ServiceLabels], served: Served, day: date, look: UnreviewedLook, paths: RunPaths) -> Artifact:
    """Compute the figures of the model in service, its alarms and its page."""
    store, settings = paths.open_store(), paths.settings()
    model = served_model(plan, [part.source for part in labels], served, settings)
    random_images = monitor_step.read_random_sample(plan.model, store)
    return monitor_step.monitor_service(labels, model, plan.model, plan.thresholds.invasive, random_images, plan.monitor, day, store, look)


@task(name="new alarms", task_run_name="new alarms {status.model}", **REMOTE_WORK)
def find_new_alarms(status: ServiceStatus, paths: RunPaths) -> tuple[str, ...]:
    """The keys of lasting alarms for which no event was sent yet."""
    known = (paths.open_store().object_store.read(ANNOUNCED.format(model=status.model)) or b"").decode().splitlines()
    return tuple(key for key in status.lasting if key not in known)


@task(name="remember alarm", task_run_name="remember alarm {model}", **REMOTE_WORK)
def remember_alarm(model: str, key: str, paths: RunPaths) -> None:
    """Note that the event of an alarm was sent."""
    store, name = paths.open_store().object_store, ANNOUNCED.format(model=model)
    store.put(name, (store.read(name) or b"") + f"{key}\n".encode())
