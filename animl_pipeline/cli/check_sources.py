"""Check that a plan's exports, folders of images and labels are there, as far as they are on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from animl_pipeline.config import Plan, SourceConfig
from animl_pipeline.config.labels import ALL_SOURCES, ClassConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.config.value_types_and_messages import did_you_mean
from animl_pipeline.core.errors import ExportError, ImagesError
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS
from animl_pipeline.storage.store import open_store

MAX_BYTES = 100_000_000
"""A larger export is not read here; `plan preview` reads it."""


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
