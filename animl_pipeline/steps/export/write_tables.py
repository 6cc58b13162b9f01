"""What an export says, as tables: every problem is counted and listed; none ends the run unless nothing is left.

Category ids differ from one export to the next, so only names leave this room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.errors import ExportError, redact_url
from animl_pipeline.core.records import Counts
from animl_pipeline.core.table_schemas import EXPORT_ANNOTATIONS, EXPORT_IMAGES, EXPORT_PROBLEMS
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.export.annotations_table import COLUMNS as OBJECT_COLUMNS
from animl_pipeline.steps.export.annotations_table import ObjectRows
from animl_pipeline.steps.export.images_table import COLUMNS as IMAGE_COLUMNS
from animl_pipeline.steps.export.images_table import ImageRows
from animl_pipeline.steps.export.problems import LOSES, Categories, Problem, Problems
from animl_pipeline.steps.export.read_export import PARTS, Batch
from animl_pipeline.storage.step_cache import StepOutput, Workspace

__all__ = ["IMAGE_COLUMNS", "LOSES", "OBJECT_COLUMNS", "Problem", "write_batches", "write_tables"]

ROWS = 10_000
"""Records looked at together."""


def write_tables(
    space: Workspace,
    cct: Mapping[str, Any],
    source: SourceConfig,
    *,
    known: Iterable[Problem] | None = None,
    locations: Mapping[str, str] | None = None,
) -> StepOutput:
    """Write images.parquet, annotations.parquet and problems.parquet from a COCO for Camera Traps document.

    Args:
        space: where to.
        cct: the document: images, annotations and categories, each a list or anything else that gives records.
        source: which of its fields mean what.
        known: problems found before, to be listed and counted with the others.
        places: the place that a location is part of; locations that are not named are places of their own.

    Raises:
        ExportError: no object is left.
    """
    return write_batches(space, _in_batches(cct), source, known=known, locations=locations)


def write_batches(
    space: Workspace,
    batches: Iterable[Batch],
    source: SourceConfig,
    *,
    known: Iterable[Problem] | None = None,
    locations: Mapping[str, str] | None = None,
) -> StepOutput:
    """As :func:`write_tables`, from a document's records as :func:`animl_pipeline.steps.export.read_export.batches` gives them, in any order."""
    images, objects = ImageRows(source), ObjectRows()
    categories = Categories()
    for part, rows in batches:
        if part == "images":
            images.add(rows)
        elif part == "annotations":
            objects.add(rows)
        elif part == "categories":
            categories.add(rows)
    problems = Problems(known or ())
    image_table = images.table(problems, locations or {})
    object_table = objects.table(image_table, categories.names(problems), problems)
    if not len(object_table):
        found = ", ".join(f"{n} {p.replace('_', ' ')}" for p, n in problems.most()) or "no annotations at all"
        raise ExportError(f"{redact_url(source.export)}: nothing is left of {objects.seen} annotations: {found}; mend the export or choose another")
    write_table(space.out, EXPORT_IMAGES, image_table)
    write_table(space.out, EXPORT_ANNOTATIONS, object_table)
    write_table(space.out, EXPORT_PROBLEMS, problems.table())
    return StepOutput(Counts(kept=len(object_table), dropped=problems.dropped(), noted=problems.noted()))


def _in_batches(cct: Mapping[str, Any]) -> Iterable[Batch]:
    for part in PARTS:
        rows = iter(cct[part])
        while batch := list(islice(rows, ROWS)):
            yield part, batch
