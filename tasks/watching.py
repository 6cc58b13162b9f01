"""What is asked of Animl between trainings, as Prefect tasks."""

from __future__ import annotations

from datetime import datetime

from prefect import task

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import load_settings
from animl_pipeline.steps import export as export_room
from tasks.policies import PERSISTENT


@task(name="count validated", task_run_name="count validated {source.name}", **PERSISTENT)
def count_validated(source: SourceConfig, since: datetime | None) -> int:
    """How many images of the source hold labels that were validated since the last training."""
    return export_room.count_validated(source, since, load_settings())
