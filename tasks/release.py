"""The last door as Prefect tasks: put a package behind its endpoint, take it back, tell Animl."""

from __future__ import annotations

from prefect import task

from animl_pipeline import deploy as endpoint_room
from animl_pipeline.config import Plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.records import Approval, Release, Report
from animl_pipeline.deploy import Registration
from animl_pipeline.storage.step_cache import open_store
from tasks.policies import ONCE


@task(name="deploy", task_run_name="deploy {plan.model}", **ONCE)
def deploy_endpoint(report: Report, plan: Plan, force: str = "", approval: Approval | None = None) -> Release:
    """Put the report's package behind its endpoints, check the live answers, and go back if they differ."""
    settings = load_settings()
    return endpoint_room.deploy_endpoint(report.package, plan, open_store(settings), settings, report=report, force=force, approval=approval)


@task(name="rollback", task_run_name="roll back {plan.model}", **ONCE)
def rollback_endpoint(plan: Plan, to: str | None) -> Release:
    """Put an earlier version behind the endpoints again."""
    settings = load_settings()
    return endpoint_room.rollback_endpoint(plan, open_store(settings), settings, to)


@task(name="register", task_run_name="register {plan.model}", **ONCE)
def register_model(plan: Plan) -> Registration | None:
    """Tell Animl which model is behind the endpoint now; nothing where it was not released from here."""
    settings = load_settings()
    store = open_store(settings)
    package = endpoint_room.served_package(plan, store, settings)
    return None if package is None else endpoint_room.register_model(package, plan, store, settings)
