"""Tasks that ask how much was validated since the last training."""

from __future__ import annotations

from datetime import datetime

from prefect import task

from animl_pipeline.config import Plan, SourceConfig
from animl_pipeline.deploy import latest_report_and_training_start
from animl_pipeline.steps import export as export_step
from tasks.retry_policies import LONG_WAIT, REMOTE_WORK
from tasks.store_and_data_paths import RunPaths


@task(name="last training", task_run_name="last training", **REMOTE_WORK)
def last_training_start(plan: Plan, paths: RunPaths) -> datetime | None:
    """When the model's last completed training began; None if there was none."""
    return latest_report_and_training_start.last_training_start(plan.model, paths.open_store())


@task(name="count validated", task_run_name="count validated {source.name}", **LONG_WAIT)
def count_validated(source: SourceConfig, since: datetime | None, paths: RunPaths) -> int:
    """The number of the source's images that hold labels validated since a time; None counts all."""
    return export_step.count_validated(source, since, paths.settings())
