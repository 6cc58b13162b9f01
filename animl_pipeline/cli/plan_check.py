"""The command `animl-pipeline plan check`, and the group of the plan commands.

The check looks for exports, folders of images and labels as far as they are on this machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.lazy_commands import LazyCommand, LazyGroup
from animl_pipeline.cli.options import DataOption, PlanArgument, settings_with
from animl_pipeline.config import ClassConfig, Plan, SourceConfig, find_plan, load_plan
from animl_pipeline.config.labels import ALL_SOURCES
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.value_types_and_messages import did_you_mean
from animl_pipeline.core.errors import ExportError, ImagesError, redact_url
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS
from animl_pipeline.steps import detections, training
from animl_pipeline.storage.store import open_store

MAX_BYTES = 100_000_000
"""A larger export is not read here; `plan preview` reads it."""


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


class SourceProblems(NamedTuple):
    """What is missing (a line each, for which retrain would refuse or a class would be empty), and what else a person should know."""

    missing: list[str]
    notes: list[str]


def find_source_problems(plan: Plan, settings: Settings) -> SourceProblems:
    """Look for the plan's local exports and folders of images, and for its labels in the exports. Nothing is downloaded or kept."""
    missing = [line for source in plan.sources for line in _missing_files(source, settings)]
    notes, labels = [], {}
    for source in plan.sources:
        if "://" in source.export:
            notes.append(f"the labels of {source.name} are not compared with the plan, because its export is elsewhere; plan preview compares them")
        elif _is_large(settings.data_path(source.export)):
            notes.append(f"the labels of {source.name} are not compared with the plan, because its export is large; plan preview compares them")
        elif settings.data_path(source.export).exists():
            try:
                labels[source.name] = _read_labels(source, settings)
            except ExportError as e:
                missing.append(str(e))
    missing += _missing_classes(plan, labels)
    notes += _missing_labels(plan, labels)
    return SourceProblems(list(dict.fromkeys(missing)), notes)


def _missing_files(source: SourceConfig, settings: Settings) -> Iterator[str]:
    from animl_pipeline.steps.images import open_image_host

    if "://" not in source.export and not settings.data_path(source.export).exists():
        yield (
            f"source {source.name!r}: expected an export at {settings.data_path(source.export)}, found none; correct sources.export, or the folder "
            f"where relative paths start (ANIML_DATA, --data), which is {settings.data_path('.')}"
        )
        return
    try:
        open_image_host(source, settings)
    except ImagesError as e:
        yield str(e)


def _is_large(path: Path) -> bool:
    """Whether an export has more bytes than are read here. A folder counts with all its files, up to the limit."""
    if path.is_file():
        return path.stat().st_size > MAX_BYTES
    total = 0
    for folder, _, names in os.walk(path):
        total += sum(Path(folder, name).stat().st_size for name in names if name.endswith((".json", ".csv", ".gz", ".zip")))
        if total > MAX_BYTES:
            return True
    return False


def _read_labels(source: SourceConfig, settings: Settings) -> frozenset[str]:
    """The labels of a local export."""
    from animl_pipeline.steps.export import export_annotations

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(settings, folder)
        export = export_annotations(source, store, settings)
        return frozenset(map(str, store.table(export, EXPORT_ANNOTATIONS)["label"].unique()))


def _missing_classes(plan: Plan, labels: dict[str, frozenset[str]]) -> Iterator[str]:
    """A line for each class of which no label is in any export, if all exports were read."""
    if len(labels) < len(plan.sources):
        return
    for class_id, rule in plan.labels.classes.items():
        wanted, found = _labels_of(rule, labels)
        if not rule.taxa and not wanted & found:
            yield f"labels.classes.{class_id}: none of its labels is in an export: {', '.join(_with_suggestions(sorted(wanted), found))}"


def _missing_labels(plan: Plan, labels: dict[str, frozenset[str]]) -> Iterator[str]:
    """A line for each class of which some labels are in no export, if all exports were read."""
    if len(labels) < len(plan.sources):
        return
    for class_id, rule in plan.labels.classes.items():
        wanted, found = _labels_of(rule, labels)
        if wanted & found and wanted - found:
            yield f"labels.classes.{class_id}: in no export: {', '.join(_with_suggestions(sorted(wanted - found), found))}"


def _labels_of(rule: ClassConfig, labels: dict[str, frozenset[str]]) -> tuple[frozenset[str], frozenset[str]]:
    """The labels that become a class, and those of the exports in which they are looked for, in small letters."""
    sources = labels if ALL_SOURCES in rule.from_ else [s for s in rule.from_ if s in labels]
    found = frozenset(label.casefold() for source in sources for label in labels[source])
    return frozenset(label.casefold() for label in rule.labels()), found


def _with_suggestions(names: Iterable[str], known: frozenset[str]) -> list[str]:
    return [f"{name!r}{did_you_mean(name, known)}" for name in names]
