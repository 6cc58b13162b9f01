"""What each class has and lacks, counted; and the class that has too little."""

from __future__ import annotations

import logging

import numpy as np

from animl_pipeline.config import LabelsConfig
from animl_pipeline.core.errors import LabelsError
from animl_pipeline.core.records import Record
from animl_pipeline.steps.labels.annotations import Ints, Objects
from animl_pipeline.steps.labels.exclusions import OVER_CAP, REASONS, Choice

log = logging.getLogger(__name__)

SHOWN = 12
"""Names that a message lists at most."""


class ClassRow(Record):
    """One class: what stays of it, and what is left out by reason."""

    id: str
    objects: int
    images: int
    locations: int
    dropped: dict[str, int]
    names: dict[str, int]

    @property
    def over_cap(self) -> int:
        """Objects that a limit leaves out."""
        return self.dropped.get(REASONS[OVER_CAP], 0)


def class_rows(objects: Objects, choice: Choice, spec: LabelsConfig) -> list[ClassRow]:
    """Each class of the plan, in its order; its names with the most frequent first."""
    location, _ = objects.location()
    rows = []
    for number, class_id in enumerate(spec.classes):
        meant = choice.class_id == number
        kept = meant & choice.kept()
        here = location[kept]
        rows.append(
            ClassRow(
                id=class_id,
                objects=int(kept.sum()),
                images=len(np.unique(objects.image[kept])),
                locations=len(np.unique(here[here >= 0])),
                dropped=counted(choice.reason[meant & ~choice.kept()], REASONS),
                names=counted(objects.name[meant], objects.names),
            )
        )
    return rows


def counted(codes: Ints, words: tuple[str, ...]) -> dict[str, int]:
    """How often each word occurs, the most frequent first."""
    numbers = np.bincount(codes, minlength=len(words))
    return {words[i]: int(numbers[i]) for i in np.argsort(-numbers, kind="stable") if numbers[i]}


def on_too_few(rows: list[ClassRow], names: dict[str, int], spec: LabelsConfig) -> list[str]:
    """A line for each class that has fewer objects or places than the plan expects; ``names`` are all that the exports hold."""
    lines = []
    for row in rows:
        objects, locations = spec.least(row.id)
        if row.objects < objects:
            lines.append(_too_few_objects(row, objects, names))
        elif row.locations < locations:
            lines.append(
                f"the class {row.id!r} lives at {row.locations} places, expected at least {locations} (min_locations); "
                "add sources where it lives, expect less, or leave the class out"
            )
    return lines


def check(lines: list[str], spec: LabelsConfig) -> None:
    """End at the first of some lines, or only say them, by the plan's word.

    Raises:
        LabelsError: a class has too little, and the plan's word is that this is an error.
    """
    if lines and spec.on_too_few == "error":
        raise LabelsError(lines[0])
    for line in lines:
        log.warning("%s", line)


def _too_few_objects(row: ClassRow, expected: int, names: dict[str, int]) -> str:
    why = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in row.dropped.items()) or "no category of that name"
    what = "no example" if not row.objects else f"{row.objects} examples, expected at least {expected} (min_count)"
    left_out = why if row.dropped or not row.objects else "none left out"
    held = ", ".join(f"{name} {n}" for name, n in list(names.items())[:SHOWN])
    return (
        f"the class {row.id!r} has {what} ({left_out}); the exports hold: {held}; "
        f"mend labels.classes.{row.id}.from in the plan or leave the class out"
    )
