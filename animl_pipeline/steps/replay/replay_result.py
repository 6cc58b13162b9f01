"""The result of a replay: labels gained and lost, by class, and what people's reviews say of them; as a record and in words."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.report_formats import format_count


class Judged(Record):
    """Labels by what people validated: right, wrong, or not decided by them."""

    right: int = 0
    wrong: int = 0
    undecided: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.right + self.wrong + self.undecided


class ClassChange(Record):
    """The labels of a class: how many each model gave, which the new model gained, and which it lost."""

    id: str
    invasive: bool
    before: int
    after: int
    gained: Judged
    lost: Judged


class Replay(Record):
    """The result.

    Attributes:
        champion: the version in service.
        challenger: the new version.
        images: images that were replayed.
        animals: boxes of animals in them.
        decided: how many of these people reviewed.
        not_readable: images that were chosen and could not be downloaded.
        classes: a row for each class with a label, invasive ones first.
    """

    champion: str
    challenger: str
    images: int
    animals: int
    decided: int
    not_readable: int
    classes: tuple[ClassChange, ...]


def count_changes(labels: pd.DataFrame, invasive: Sequence[str]) -> tuple[ClassChange, ...]:
    """The changes by class: invasive classes first, then by the number of changes.

    Args:
        labels: REPLAYED_LABELS.
        invasive: classes whose labels are alarms.
    """
    found = []
    for class_id, rows in labels.groupby("class_id"):
        of_change = {change: _judge(rows[rows["change"] == change]) for change in ("kept", "gained", "lost")}
        kept, gained, lost = of_change["kept"].total, of_change["gained"], of_change["lost"]
        found.append(
            ClassChange(
                id=str(class_id), invasive=class_id in invasive, before=kept + lost.total, after=kept + gained.total, gained=gained, lost=lost
            )
        )
    return tuple(sorted(found, key=lambda c: (not c.invasive, -c.gained.total - c.lost.total, c.id)))


def _judge(rows: pd.DataFrame) -> Judged:
    counts = rows["judged"].value_counts()
    return Judged(right=int(counts.get("right", 0)), wrong=int(counts.get("wrong", 0)), undecided=int(counts.get("", 0)))


def describe_replay(replay: Replay) -> str:
    """The result as sentences, without markup."""
    of = f"the last {format_count(replay.images, 'image')} that {replay.champion} answered in service"
    missing = f" {format_count(replay.not_readable, 'image')} could not be read." if replay.not_readable else ""
    if not replay.animals:
        return f"On {of}, there was no animal to compare.{missing}"
    alarms = [c for c in replay.classes if c.invasive]
    others = [c for c in replay.classes if not c.invasive]
    parts = [f"{c.id} {c.before:,} → {c.after:,}, {_changes(c.gained, c.lost)}" for c in alarms]
    said = f"Alarms (labels of invasive classes): {'; '.join(parts)}." if parts else "No model gave an alarm (a label of an invasive class)."
    gained, lost = (_sum([getattr(c, name) for c in others]) for name in ("gained", "lost"))
    rest = f" Other classes: {_changes(gained, lost)}." if others else ""
    return f"On {of} ({format_count(replay.animals, 'animal')}, {replay.decided:,} of them reviewed). {said}{rest}{missing}"


def _sum(parts: Sequence[Judged]) -> Judged:
    return Judged(**{name: sum(getattr(p, name) for p in parts) for name in Judged.model_fields})


def _changes(gained: Judged, lost: Judged) -> str:
    return f"{_count(gained, 'gained')}, {_count(lost, 'lost')}"


def _count(judged: Judged, what: str) -> str:
    named = ", ".join(f"{n:,} {name}" for name, n in (("right", judged.right), ("wrong", judged.wrong), ("not reviewed", judged.undecided)) if n)
    return f"{judged.total:,} {what}{f' ({named})' if named else ''}"
