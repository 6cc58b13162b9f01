"""`animl-pipeline plan …`: plans looked at before anything runs."""

from __future__ import annotations

import typer

from animl_pipeline.cli import console, plan_init, plan_preview
from animl_pipeline.cli.options import DataOption, PlanPath
from animl_pipeline.config import ClassConfig, load_plan
from animl_pipeline.config.settings import load_settings, remember
from animl_pipeline.steps import detections, training
from animl_pipeline.storage.remote import bare_address

plans = typer.Typer(help="Look at plans: the YAML files that say what to train, from what, judged how.", no_args_is_help=True, rich_markup_mode=None)


plans.command("init")(plan_init.init)
plans.command("preview")(plan_preview.preview)


@plans.command("check")
def check(plan: PlanPath, data: DataOption = None) -> None:
    """Check PLAN, and that there are such a detector, backbone and weights, and say what it would do. Nothing is fetched."""
    remember(data=data)
    checked, settings = load_plan(plan), load_settings()
    detections.check_ready(checked.detections, settings)
    training.check_ready(checked, settings)
    sources = ", ".join(f"{s.name} ({bare_address(s.export)})" for s in checked.sources)
    console.out.print(f"{plan} is a plan for {checked.model}")
    console.out.print(f"  sources   {sources}")
    for class_id, rule in checked.labels.classes.items():
        console.out.print(f"  class     {class_id}: {_meant(rule)}")
    console.out.print(
        f"  train     {checked.train.backbone} at {checked.model_input.size} px, {checked.train.epochs} epochs, weights {checked.train.weights}"
    )
    console.out.print(f"  release   {checked.endpoint_name()}, {checked.release.memory_mb} MB, {checked.release.max_concurrency} at a time")


def _meant(rule: ClassConfig) -> str:
    """What becomes a class, in a line."""
    lists = [("" if source == "*" else f"{source}: ") + ", ".join(names) for source, names in rule.from_.items() if names]
    return "; ".join([*lists, *(f"{t.level} {t.name}" for t in rule.taxa)])
