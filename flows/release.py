"""Release: deploy the latest package to its endpoints and check it there, or roll back to an earlier version."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from animl_pipeline.config import Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.release_and_reference_types import Approval, Release
from animl_pipeline.core.untrusted_text import escape_markdown
from animl_pipeline.deploy import Registration, new_approval
from flows.approval import can_ask, wait_for_answer
from flows.end_states import STATE_OF_VERDICT, end_as
from flows.release_question import release_question
from flows.stop_signals import prepare_run
from flows.ui_artifacts import link_to_page
from tasks import release as tasks
from tasks.store_and_data_paths import RunPaths, resolve_run_paths

log = logging.getLogger("animl_pipeline.flows.release")


@flow(name="release", flow_run_name="release {plan}", persist_result=False)
def release(plan: str, force: str = "", approve_as: str = "", note: str = "", store: str = "", version: str = "") -> Release | None:
    """Deploy the latest package of a plan to its SageMaker endpoints.

    The endpoint is asked about test crops, and its answers are compared with the offline ones. If they differ, it goes back to
    what it served before. A model whose report says hold or need_more_data is not released. If the plan says
    `approval: required`, this run asks a person and waits for the answer, suspended.

    Args:
        plan: name of a plan in deployments/plans, or the path of its YAML file.
        force: why to release against the report's verdict; the history keeps it. It is no approval.
        approve_as: your name, if you have read the report and approve the release; empty: ask.
        note: a note on your approval, which the history keeps.
        store: folder or s3://bucket/prefix for all that steps make; empty: ANIML_STORE of the worker.
        version: the version to release, also that of a trial, or the digest of its package; empty: the latest that was trained by the plan as it is.
    """
    prepare_run()
    checked, paths = load_plan(find_plan(plan, load_settings().plans)), resolve_run_paths(store)
    candidate = tasks.find_candidate.submit(checked, force, version, paths).result()
    report = candidate.report
    if candidate.hold_reason:
        return end_as(STATE_OF_VERDICT[report.verdict or report.metrics.verdict], candidate.hold_reason, None)
    approval: Approval | None = None
    if approve_as.strip():
        approval = new_approval(approve_as, note, "prefect" if can_ask() else "command line")
    elif candidate.needs_approval:
        replay = _replay(report, checked, paths)
        if not can_ask():
            return end_as("AwaitingApproval", f"{_how_to_approve(checked, report)}{_after_colon(replay)}", None)
        question = release_question(report, checked, force, candidate.replaced, datetime.now(UTC), load_settings().reports_url, replay)
        answer = wait_for_answer(report, checked, question)
        if not answer.approve:
            return end_as("Refused", f"{answer.name.strip()} refused the release of {report.version}{_after_colon(answer.note)}", None)
        approval = new_approval(answer.name, answer.note, "prefect")
    released = tasks.deploy_package.submit(report, checked, force, approval, paths).result()
    _show_release(released, report.headline, _register(checked, paths))
    message = f"{released.endpoint} serves {released.version}{_after_colon(str(released.approval or ''))}"
    return end_as("Released" if released.changed else "ServedAlready", message, released)


@flow(name="rollback", flow_run_name="rollback {plan}", persist_result=False)
def rollback(plan: str, to: str | None = None, store: str = "") -> Release:
    """Put an earlier version behind a plan's endpoints again.

    Args:
        plan: name of a plan in deployments/plans, or the path of its YAML file.
        to: the version or endpoint configuration to go back to; empty: the one before the present one.
        store: folder or s3://bucket/prefix for all that steps make; empty: ANIML_STORE of the worker.
    """
    prepare_run()
    checked, paths = load_plan(find_plan(plan, load_settings().plans)), resolve_run_paths(store)
    released = tasks.roll_back.submit(checked, to, paths).result()
    _show_release(released, "rolled back", _register(checked, paths))
    return end_as("RolledBack", f"{released.endpoint} serves {released.version} again", released)


def _replay(report: Report, plan: Plan, paths: RunPaths) -> str:
    """What a replay on the last images in service found, as Markdown; "" if the plan wants none. A replay that fails stops no release."""
    if not plan.release.replay.images:
        return ""
    log.info("replaying the last %d images in service; the task's log says how long it takes", plan.release.replay.images)
    found = tasks.replay_in_service.submit(report, plan, paths).result(raise_on_failure=False)
    if isinstance(found, BaseException):
        log.warning("the replay could not be made: %s", found)
        return f"The replay could not be made: {escape_markdown(str(found))}"
    if found.artifact is None:
        return escape_markdown(found.text)
    return f"{escape_markdown(found.text)} {link_to_page(found.artifact, 'replay.html', paths.open_store(), load_settings().reports_url)}"


def _how_to_approve(plan: Plan, report: Report) -> str:
    return (
        f"{report.model} {report.version} was not released: its plan says release.approval: required, and no person has approved it. This run has no "
        "server that could resume it, so it does not wait. Read the report, then run `animl-pipeline release PLAN --approve-as NAME "
        "[--note TEXT]`, or start release/PLAN on a Prefect server, which asks in its UI"
    )


def _after_colon(text: str) -> str:
    return f": {text.strip()}" if text.strip() else ""


def _register(plan: Plan, paths: RunPaths) -> Registration | None:
    """Register the model in Animl if the plan says so. The endpoint serves the model already, whatever comes of this."""
    if plan.release.register_ is None:
        return None
    registration = tasks.register_model.submit(plan, paths).result()
    if registration is not None:
        log.info("registration: %s; its checklist.md says what to do in Animl", registration.folder)
    return registration


def _show_release(released: Release, headline: str, registration: Registration | None) -> None:
    """Put the release among the run's artifacts."""
    lines = [f"## {released.endpoint} serves {released.version}", escape_markdown(headline)]
    for one in (released, released.batch):
        if one is not None:
            check = f"{one.checked} reference predictions compared, largest difference {one.max_difference:.2g}"
            lines.append(f"- `{one.endpoint}`: configuration `{one.endpoint_config}`, before it `{one.previous_config or 'none'}`; {check}")
    if released.approval is not None:
        lines.append(f"- {escape_markdown(str(released.approval))}")
    if registration is not None:
        lines += [f"- SSM parameter `{name}` is `{value}`" for name, value in registration.parameters.items()]
        lines.append(f"- what to do in Animl: `{registration.folder}/checklist.md`")
    create_markdown_artifact(key="release", markdown="\n\n".join(lines), description=f"{released.endpoint} serves {released.version}")
