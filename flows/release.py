"""The last door: the newest package behind its endpoint, checked there, or an earlier one back; and Animl is told."""

from __future__ import annotations

import logging

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from animl_pipeline.config import Plan, find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.records import Release, Report
from animl_pipeline.deploy import Registration, approval, held_back, lacks_approval
from animl_pipeline.deploy.latest_report import newest_report
from animl_pipeline.storage.step_cache import open_store
from flows.approval import DEPLOYMENT, asked, can_be_asked
from flows.lifecycle import install_signal_handlers
from flows.run_states import STATE_OF_VERDICT, ended
from tasks import release as tasks

log = logging.getLogger("animl_pipeline.flows.release")


@flow(name="release", flow_run_name="release {plan}", persist_result=False)
def release(plan: str, force: str = "", approve_as: str = "", note: str = "") -> Release | None:
    """Put the newest package of a plan behind its SageMaker endpoints.

    Test crops are sent to the live endpoint and their answers compared with the offline ones; if they differ, the
    endpoint goes back to what it served before. A report whose verdict is not to promote is not released. Where the plan
    says `approval: required`, this run asks a person and waits for the answer, suspended.

    Args:
        plan: name of a plan in the folder ANIML_PLANS, or the path of its YAML file.
        force: why to release although the verdict is not to; the history keeps it. It is no approval.
        approve_as: your name, if you have read the report and approve it; leave it empty to be asked.
        note: a note on your approval, which the history keeps.
    """
    install_signal_handlers()
    checked = load_plan(find_plan(plan, load_settings().plans))
    store = open_store(load_settings())
    report = newest_report(checked.model, store)
    held = held_back(report, force)
    if held:
        return ended(STATE_OF_VERDICT[report.verdict or report.metrics.verdict], held, None)
    yes = approval(approve_as, note, "prefect" if can_be_asked() else "command line") if approve_as.strip() else None
    if yes is None and lacks_approval(report.package, checked, store):
        if not can_be_asked():
            return ended("AwaitingApproval", _how_to_approve(checked, report), None)
        answer = asked(report, checked, force)
        if answer.approve != "yes":
            return ended("Refused", f"{answer.name.strip()} refused the release of {report.version}{_colon(answer.note)}", None)
        yes = approval(answer.name, answer.note, "prefect")
    done: Release = tasks.deploy_endpoint.submit(report, checked, force, yes).result()
    _show(done, report.headline, _told(checked))
    return ended("Released" if done.changed else "ServedAlready", f"{done.endpoint} serves {done.version}{_colon(str(done.approval or ''))}", done)


@flow(name="rollback", flow_run_name="rollback {plan}", persist_result=False)
def rollback(plan: str, to: str | None = None) -> Release:
    """Put an earlier version behind a plan's endpoints again.

    Args:
        plan: name of a plan in the folder ANIML_PLANS, or the path of its YAML file.
        to: the version or endpoint configuration to go back to; without it, the one before the present one.
    """
    install_signal_handlers()
    checked = load_plan(find_plan(plan, load_settings().plans))
    done: Release = tasks.rollback_endpoint.submit(checked, to).result()
    _show(done, "rolled back", _told(checked))
    return ended("RolledBack", f"{done.endpoint} serves {done.version} again", done)


def _how_to_approve(plan: Plan, report: Report) -> str:
    return (
        f"{report.model} {report.version} was not released: its plan says release.approval: required, and nobody has approved it. This run has no "
        "server that could wake it up again, so it does not wait: read the report, then run `animl-pipeline release PLAN --approve-as NAME "
        f"[--note TEXT]`, or start {DEPLOYMENT} on a Prefect server, which asks in its UI"
    )


def _colon(text: str) -> str:
    return f": {text.strip()}" if text.strip() else ""


def _told(plan: Plan) -> Registration | None:
    """What Animl was told, where the plan says so. The endpoint serves already, whatever becomes of this."""
    if plan.release.register_ is None:
        return None
    told: Registration | None = tasks.register_model.submit(plan).result()
    if told is not None:
        log.info("registration: %s; its checklist.md says what is left to do in Animl", told.folder)
    return told


def _show(done: Release, headline: str, told: Registration | None) -> None:
    lines = [f"## {done.endpoint} serves {done.version}", headline]
    for one in (done, done.batch):
        if one is not None:
            seen = f"{one.checked} golden crops asked live, largest difference to the offline answers {one.max_difference:.2g}"
            lines.append(f"- `{one.endpoint}`: configuration `{one.endpoint_config}`, before it `{one.previous_config or 'none'}`; {seen}")
    if done.approval is not None:
        lines.append(f"- {done.approval}")
    if told is not None:
        lines += [f"- SSM `{name}` holds `{value}`" for name, value in told.parameters.items()]
        lines.append(f"- what is left to do in Animl: `{told.folder}/checklist.md`")
    create_markdown_artifact(key="release", markdown="\n\n".join(lines))
