"""The command `animl-pipeline plan check`, and the group of the plan commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.check_sources import find_source_problems
from animl_pipeline.cli.lazy_commands import LazyCommand, LazyGroup
from animl_pipeline.cli.options import DataOption, PlanArgument, settings_with
from animl_pipeline.config import ClassConfig, Plan, find_plan, load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import redact_url
from animl_pipeline.steps import detections, training


class PlanCommands(LazyGroup):
    """The plan commands that read whole exports, which needs pandas."""

    lazy: ClassVar[dict[str, LazyCommand]] = {
        "init": LazyCommand("init_plan:init", "Write a first, commented plan from EXPORTs."),
        "preview": LazyCommand("preview_data_and_downloads:preview", "Show what PLAN would train on, and what downloading its images would take."),
    }


plans = typer.Typer(
    cls=PlanCommands,
    help="Write, check and preview plans: the YAML files that say what to train, from which labels, and what a good model is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@plans.command("check")
def check(plan: PlanArgument, data: DataOption = None) -> None:
    """Check PLAN, show what it would do, and check that what it names is there. Nothing is downloaded.

    That is: detector, backbone and weights, exports and folders of images on this machine, and the labels of the classes in these
    exports. Ends with status 1 if something is missing.
    """
    settings = settings_with(data=data)
    file = find_plan(plan, settings.plans)
    checked = load_plan(file)
    check_what_it_names(checked, settings)
    sources = ", ".join(f"{s.name} ({redact_url(s.export)})" for s in checked.sources)
    console.out.print(f"{plan} is a plan for {checked.model}")
    console.out.print(f"  file      {file}", soft_wrap=True, markup=False, highlight=False)
    console.out.print(f"  sources   {sources}")
    for class_id, rule in checked.labels.classes.items():
        invasive = " (invasive)" if class_id in checked.thresholds.invasive else ""
        console.out.print(f"  class     {class_id}{invasive}: {_describe_class(rule)}")
    if nothing := checked.labels.nothing:
        console.out.print(f"  class     {nothing.id}: false boxes, on at most {nothing.max_images:,} reviewed empty images; never shown in Animl")
    if other := checked.labels.other_animal:
        shown = "shown in Animl" if other.register_ else "never shown in Animl"
        console.out.print(f"  class     {other.id}: animals that no class names, on at most {other.max_images:,} images of each source; {shown}")
    for parent, children in checked.labels.parents.items():
        console.out.print(f"  parent    {parent}: answers for {', '.join(children)} where none of them reaches its threshold")
    for line in _describe_training(checked):
        console.out.print(f"  train     {line}")
    console.out.print(f"  release   {checked.endpoint_name()}, {checked.release.memory_mb} MB, {checked.release.max_concurrency} at a time")
    if warning := checked.release.batch_warning():
        console.out.print(f"  warning   {warning}")
    problems = find_source_problems(checked, settings)
    for line in problems.notes:
        console.out.print(f"  note      {line}")
    for line in problems.missing:
        console.err.print(f"animl-pipeline: {console.one_line(line)}")
    if problems.missing:
        raise typer.Exit(1)


def check_what_it_names(plan: Plan, settings: Settings) -> None:
    """Check that the plan's detector, backbone and weights can be used, without Prefect.

    Raises:
        DetectionsError, TrainingError, WeightsError: one of them cannot.
    """
    detections.check_ready(plan.detections, settings, for_production=plan.production is not None)
    training.check_backbone_and_weights(plan, settings)


def _describe_class(rule: ClassConfig) -> str:
    """The labels and taxa that become a class, in one line."""
    lists = [("" if source == "*" else f"{source}: ") + ", ".join(names) for source, names in rule.from_.items() if names]
    return "; ".join([*lists, *(f"{t.level} {t.name}" for t in rule.taxa)])


def _describe_training(plan: Plan) -> Iterator[str]:
    """A line for each recipe."""
    train, size = plan.train, plan.model_input.size
    if train.needs_embeddings():
        yield f"a linear head on {', '.join(n.network for n in train.networks)} at {size} px, {train.folds} folds"
    if "fine_tune" in train.recipes():
        yield f"{train.backbone} at {size} px, {train.epochs} epochs, weights {train.weights}"
