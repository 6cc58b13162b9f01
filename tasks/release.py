"""Tasks that release a package, roll it back, and register it in Animl; and the replay before a release."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task

from animl_pipeline import deploy
from animl_pipeline.config import Plan
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.release_and_reference_types import Approval, Release
from animl_pipeline.deploy.trained_versions import read_report
from tasks.step_tasks_and_retries import LOCAL_WORK, REMOTE_WORK
from tasks.store_and_data_paths import RunPaths

if TYPE_CHECKING:
    from animl_pipeline.review.replay_before_release import ReplayNote


class ReleaseCandidate(Record):
    """The package to release, what prevents its release, and the endpoint's last release (None: the store knows none)."""

    report: Report
    hold_reason: str
    needs_approval: bool
    replaced: deploy.ReleaseRecord | None = None


@task(name="candidate", task_run_name="candidate {plan.model}", **REMOTE_WORK)
def find_candidate(plan: Plan, force: str, version: str, paths: RunPaths) -> ReleaseCandidate:
    """The package of a version, the latest if it is ""; why it must not be released ("" if it may be), and whether a person must approve it first."""
    store = paths.open_store()
    report = read_report(plan.model, version, store)
    held = deploy.hold_reason(report, force)
    asks = deploy.needs_approval(report.package, plan, store)
    done = [record for record in deploy.release_records(plan, store) if record.state == "done"]
    return ReleaseCandidate(report=report, hold_reason=held, needs_approval=asks, replaced=done[-1] if done else None)


@task(name="replay", task_run_name="replay {plan.model}", **REMOTE_WORK)
def replay_in_service(report: Report, plan: Plan, paths: RunPaths) -> ReplayNote:
    """Run the new model on the last images that the model in service answered, and say what would change."""
    from animl_pipeline.review.replay_before_release import replay_before_release  # the only release task that reads images

    return replay_before_release(report, plan, paths.open_store(), paths.settings())


@task(name="deploy", task_run_name="deploy {plan.model}", **LOCAL_WORK)
def deploy_package(report: Report, plan: Plan, force: str, approval: Approval | None, paths: RunPaths) -> Release:
    """Deploy the report's package to its endpoints, check the live answers, and go back if they differ.

    It is not retried by itself: the next release finishes or undoes what this one leaves, and a person should look first.
    """
    return deploy.deploy_package(report.package, plan, paths.open_store(), paths.settings(), report=report, force=force, approval=approval)


@task(name="rollback", task_run_name="roll back {plan.model}", **LOCAL_WORK)
def roll_back(plan: Plan, to: str | None, paths: RunPaths) -> Release:
    """Put an earlier version behind the plan's endpoints again. It is not retried, as a release is not."""
    return deploy.roll_back(plan, paths.open_store(), paths.settings(), to)


@task(name="register", task_run_name="register {plan.model}", **REMOTE_WORK)
def register_model(plan: Plan, paths: RunPaths) -> deploy.Registration | None:
    """Register the deployed model in Animl. Returns None if the endpoint's model was not released from this store."""
    settings, store = paths.settings(), paths.open_store()
    package = deploy.deployed_package(plan, store, settings)
    return None if package is None else deploy.register_model(package, plan, store, settings)
