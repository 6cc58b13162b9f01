"""`animl-pipeline plan …`: plans looked at before anything runs."""

from __future__ import annotations

import typer

from animl_pipeline import detections, model
from animl_pipeline.plan import ClassPlan, load_plan
from animl_pipeline.remote import bare_address
from animl_pipeline.settings import load_settings, remember
from flows import screen
from flows.commands import plan_init, plan_preview
from flows.commands.options import DataOption, PlanPath

plans = typer.Typer(help="Look at plans: the YAML files that say what to train, from what, judged how.", no_args_is_help=True, rich_markup_mode=None)


plans.command("init")(plan_init.init)
plans.command("preview")(plan_preview.preview)


@plans.command("check")
def check(plan: PlanPath, data: DataOption = None) -> None:
    """Check PLAN, and that there are such a detector, backbone and weights, and say what it would do. Nothing is fetched."""
    remember(data=data)
    checked, settings = load_plan(plan), load_settings()
    detections.check_ready(checked.detections, settings)
    model.check_ready(checked, settings)
    sources = ", ".join(f"{s.name} ({bare_address(s.export)})" for s in checked.sources)
    screen.out.print(f"{plan} is a plan for {checked.model}")
    screen.out.print(f"  sources   {sources}")
    for class_id, rule in checked.labels.classes.items():
        screen.out.print(f"  class     {class_id}: {_meant(rule)}")
    screen.out.print(
        f"  train     {checked.train.backbone} at {checked.view.size} px, {checked.train.epochs} epochs, weights {checked.train.weights}"
    )
    screen.out.print(f"  release   {checked.endpoint_name()}, {checked.release.memory_mb} MB, {checked.release.max_concurrency} at a time")


def _meant(rule: ClassPlan) -> str:
    """What becomes a class, in a line."""
    lists = [("" if source == "*" else f"{source}: ") + ", ".join(names) for source, names in rule.from_.items() if names]
    return "; ".join([*lists, *(f"{t.level} {t.name}" for t in rule.taxa)])
