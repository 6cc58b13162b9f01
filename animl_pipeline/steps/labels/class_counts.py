"""Count the annotations, images and locations of each class, and find classes with too few."""

from __future__ import annotations

import logging

import numpy as np

from animl_pipeline.config import LabelsConfig
from animl_pipeline.core.errors import LabelsError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.steps.labels.choose_annotations import REASONS, Choice
from animl_pipeline.steps.labels.read_annotations import Annotations, Ints

log = logging.getLogger(__name__)

MAX_SHOWN = 12
"""A message lists at most this many labels."""


class ClassCounts(Record):
    """One class: how many annotations are kept, on how many images and at how many locations.

    Attributes:
        dropped: reason → number of annotations that are left out.
        labels: label → number of annotations, kept or not, the most frequent first.
    """

    id: str
    annotations: int
    images: int
    locations: int
    dropped: dict[str, int]
    labels: dict[str, int]


def count_classes(annotations: Annotations, choice: Choice, config: LabelsConfig) -> list[ClassCounts]:
    """The counts of each class, in the plan's order."""
    location = annotations.location()
    counts = []
    for number, class_id in enumerate(config.classes):
        of_class = choice.class_number == number
        kept = of_class & choice.kept()
        known = location[kept & (location >= 0)]
        counts.append(
            ClassCounts(
                id=class_id,
                annotations=int(kept.sum()),
                images=len(np.unique(annotations.image[kept])),
                locations=len(np.unique(known)),
                dropped=count_codes(choice.reason[of_class & ~choice.kept()], REASONS),
                labels=count_codes(annotations.label[of_class], annotations.labels),
            )
        )
    return counts


def count_codes(codes: Ints, names: tuple[str, ...]) -> dict[str, int]:
    """Name → how often its position in ``names`` occurs in ``codes``, the most frequent first."""
    numbers = np.bincount(codes, minlength=len(names))
    return {names[i]: int(numbers[i]) for i in np.argsort(-numbers, kind="stable") if numbers[i]}


def find_too_few(counts: list[ClassCounts], labels: dict[str, int], config: LabelsConfig) -> list[str]:
    """A line for each class with fewer annotations or locations than the plan expects.

    ``labels``: label → number of annotations in all exports.
    """
    lines = []
    for row in counts:
        rule = config.classes[row.id]
        min_count = config.min_count if rule.min_count is None else rule.min_count
        min_locations = config.min_locations if rule.min_locations is None else rule.min_locations
        if row.annotations < min_count:
            lines.append(_too_few_annotations(row, min_count, labels))
        elif row.locations < min_locations:
            lines.append(
                f"the class {row.id!r} is at {row.locations} locations, expected at least {min_locations} (min_locations); "
                "add sources that have it, expect fewer, or remove the class"
            )
    return lines


def report_too_few(lines: list[str], config: LabelsConfig) -> None:
    """Raise or log the lines of :func:`find_too_few`, as the plan says in ``on_too_few``.

    Raises:
        LabelsError: with the first line.
    """
    if lines and config.on_too_few == "error":
        raise LabelsError(lines[0], code="too_few")
    for line in lines:
        log.warning("%s", line)


def _too_few_annotations(row: ClassCounts, expected: int, labels: dict[str, int]) -> str:
    found = f"{row.annotations} annotations, expected at least {expected} (min_count)" if row.annotations else "no annotation"
    dropped = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in row.dropped.items())
    why = dropped or ("none left out" if row.annotations else "no export has its labels")
    held = ", ".join(f"{label} {n}" for label, n in list(labels.items())[:MAX_SHOWN])
    return (
        f"the class {row.id!r} has {found} ({why}); the exports have the labels: {held}; "
        f"correct labels.classes.{row.id}.from in the plan or remove the class"
    )
