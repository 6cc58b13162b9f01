"""The last door: the newest package behind its endpoint, checked there, or an earlier one back; and Animl is told."""

from __future__ import annotations

import logging

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from animl_pipeline.endpoint import Registration
from animl_pipeline.plan import Plan, find_plan, load_plan
from animl_pipeline.records import Release
from animl_pipeline.reports import newest_report
from animl_pipeline.settings import load_settings
from animl_pipeline.store import open_store
from flows.ending import take_charge
from tasks import release as tasks

log = logging.getLogger("animl_pipeline.flows.release")


@flow(name="release", flow_run_name="release {plan}", persist_result=False)
def release(plan: str, force: str = "") -> Release:
    """Put the newest package of a plan behind its SageMaker endpoints.

    Test crops are sent to the live endpoint and their answers compared with the offline ones; if they differ, the
    endpoint goes back to what it served before. A report whose verdict is not to promote is not released.

    Args:
        plan: name of a plan in the folder ANIML_PLANS, or the path of its YAML file.
        force: why to release although the verdict is not to; the history keeps it.
    """
    take_charge()
    checked = load_plan(find_plan(plan, load_settings().plans))
    report = newest_report(checked.model, open_store(load_settings()))
    done: Release = tasks.deploy_endpoint.submit(report, checked, force).result()
    _show(done, report.headline, _told(checked))
    return done


@flow(name="rollback", flow_run_name="rollback {plan}", persist_result=False)
def rollback(plan: str, to: str | None = None) -> Release:
    """Put an earlier version behind a plan's endpoints again.

    Args:
        plan: name of a plan in the folder ANIML_PLANS, or the path of its YAML file.
        to: the version or endpoint configuration to go back to; without it, the one before the present one.
    """
    take_charge()
    checked = load_plan(find_plan(plan, load_settings().plans))
    done: Release = tasks.rollback_endpoint.submit(checked, to).result()
    _show(done, "rolled back", _told(checked))
    return done


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
    if told is not None:
        lines += [f"- SSM `{name}` holds `{value}`" for name, value in told.parameters.items()]
        lines.append(f"- what is left to do in Animl: `{told.folder}/checklist.md`")
    create_markdown_artifact(key="release", markdown="\n\n".join(lines))
