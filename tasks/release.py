"""The last door as Prefect tasks: put a package behind its endpoint, or take it back."""

from __future__ import annotations

from prefect import task

from animl_pipeline import endpoint as endpoint_room
from animl_pipeline.plan import Plan
from animl_pipeline.records import Artifact, Release
from animl_pipeline.settings import load_settings
from animl_pipeline.store import open_store
from tasks.policies import ONCE


@task(name="deploy", task_run_name="deploy {plan.model}", **ONCE)
def deploy_endpoint(package: Artifact, plan: Plan) -> Release:
    """Put the package behind its endpoint, check the live answers, and go back if they differ."""
    settings = load_settings()
    return endpoint_room.deploy_endpoint(package, plan, open_store(settings), settings)


@task(name="rollback", task_run_name="roll back {plan.model}", **ONCE)
def rollback_endpoint(plan: Plan, to: str | None) -> Release:
    """Put an earlier version behind the endpoint again."""
    settings = load_settings()
    return endpoint_room.rollback_endpoint(plan, open_store(settings), settings, to)
