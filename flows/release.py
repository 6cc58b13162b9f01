"""The last door: the newest package behind its endpoint, checked there, or an earlier one back."""

from __future__ import annotations

import logging

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from animl_pipeline.plan import load_plan
from animl_pipeline.records import Release
from animl_pipeline.reports import newest_report
from animl_pipeline.settings import load_settings
from animl_pipeline.store import open_store
from flows.ending import take_charge
from tasks import release as tasks

log = logging.getLogger("animl_pipeline.flows.release")


@flow(name="release", flow_run_name="release {plan}", persist_result=False)
def release(plan: str) -> Release:
    """Put the newest package of a plan behind its SageMaker endpoint.

    Test crops are sent to the live endpoint and their answers compared with the offline ones; if they differ, the
    endpoint goes back to what it served before.

    Args:
        plan: path of the plan's YAML file.
    """
    take_charge()
    checked = load_plan(plan)
    report = newest_report(checked.model, open_store(load_settings()))
    done: Release = tasks.deploy_endpoint.submit(report.package, checked).result()
    _show(done, report.headline)
    return done


@flow(name="rollback", flow_run_name="rollback {plan}", persist_result=False)
def rollback(plan: str, to: str | None = None) -> Release:
    """Put an earlier version behind a plan's endpoint again.

    Args:
        plan: path of the plan's YAML file.
        to: the endpoint configuration to go back to; without it, the one before the present one.
    """
    take_charge()
    done: Release = tasks.rollback_endpoint.submit(load_plan(plan), to).result()
    _show(done, "rolled back")
    return done


def _show(done: Release, headline: str) -> None:
    lines = [
        f"## {done.endpoint} serves {done.version}",
        headline,
        f"- configuration `{done.endpoint_config}`, before it `{done.previous_config or 'none'}`",
        f"- {done.checked} golden crops asked live; largest difference to the offline answers {done.max_difference:.2g}",
    ]
    create_markdown_artifact(key="release", markdown="\n\n".join(lines))
