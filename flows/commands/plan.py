"""`animl-pipeline plan …`: plans looked at before anything runs."""

from __future__ import annotations

import typer

from animl_pipeline.plan import load_plan
from flows import screen
from flows.commands.options import PlanPath

plans = typer.Typer(help="Look at plans: the YAML files that say what to train, from what, judged how.", no_args_is_help=True, rich_markup_mode=None)


@plans.command("check")
def check(plan: PlanPath) -> None:
    """Check PLAN and say what it would do."""
    checked = load_plan(plan)
    sources = ", ".join(f"{s.name} ({s.export})" for s in checked.sources)
    screen.out.print(f"{plan} is a plan for {checked.model}")
    screen.out.print(f"  sources   {sources}")
    for class_id, rule in checked.labels.classes.items():
        screen.out.print(f"  class     {class_id}: {', '.join(rule.from_)}")
    screen.out.print(
        f"  train     {checked.train.backbone} at {checked.view.size} px, {checked.train.epochs} epochs, weights {checked.train.weights}"
    )
    screen.out.print(f"  release   {checked.endpoint_name()}, {checked.release.memory_mb} MB, {checked.release.max_concurrency} at a time")
