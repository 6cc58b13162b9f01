"""`animl-pipeline monitor PLAN`: how the model in service does, by what people validated in Animl since its release."""

from __future__ import annotations

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import PlanArgument, StoreOption, settings_with
from animl_pipeline.cli.prefect_connection import load_prefect

MAX_STRANGERS = 10
DEGRADED = 3
"""The exit code where the model is worse than usual."""


def monitor(plan: PlanArgument, store: StoreOption = None) -> None:
    """Compare the labels of PLAN's model in Animl with what people validated since, and write a page with figures and alarms.

    Only what is new is asked for. A killed run goes on where it was. The exit code is 3 if the model is worse than usual.
    """
    settings = settings_with(store)
    load_prefect()
    from animl_pipeline.cli.run_with_prefect import run_flow
    from flows.monitor import monitor as flow

    state = run_flow(flow, plan, settings.store, return_state=True)
    status = state.result()
    for line in (f"{status.model}: {status.state}. {status.headline}", *status.sentences, *status.warnings):
        console.out.print(line)
    for stranger in status.strangers[:MAX_STRANGERS]:
        about = console.one_line(f"{stranger.link or stranger.image_id}, {stranger.location}, likeliest {stranger.likeliest}")
        console.out.print(f"suspected stranger: {about}", markup=False)
    if status.review_page:
        console.out.print(f"review next: {status.review_page}")
    if status.page:
        console.out.print(f"page: {status.page}")
    if status.state == "Degraded":
        raise typer.Exit(DEGRADED)
