"""The plan's sections `production`, `thresholds`, `gate`, `auto_accept` and `audit`: how a model is evaluated, and when it may be released."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.config.value_types_and_messages import explain_unknown_classes
from animl_pipeline.core.frozen_record import Record, Share

Group = Literal["invasive", "native"]


class AimConfig(Record):
    """What a class's threshold must reach on val: one of these, or several together."""

    recall: Share | None = Field(default=None, description="at least; if it is the only aim, the highest threshold that reaches it is chosen")
    precision: Share | None = Field(default=None, description="at least; without a recall, the lowest threshold that reaches it is chosen")
    max_false_alarms_per_1000: float | None = Field(
        default=None, ge=0, le=1000, description="crops of other classes that reach the threshold, of 1000 crops"
    )

    @model_validator(mode="after")
    def _has_an_aim(self) -> Self:
        if self.recall is None and self.precision is None and self.max_false_alarms_per_1000 is None:
            raise ValueError("expected recall, precision or max_false_alarms_per_1000, found none of them; give at least one")
        return self

    def __str__(self) -> str:
        """The aim in words."""
        parts = [
            f"recall >= {self.recall:g}" if self.recall is not None else "",
            f"precision >= {self.precision:g}" if self.precision is not None else "",
            f"at most {self.max_false_alarms_per_1000:g} false alarms per 1000" if self.max_false_alarms_per_1000 is not None else "",
        ]
        return " and ".join(filter(None, parts))


DEFAULT_AIMS: dict[str, AimConfig] = {"invasive": AimConfig(recall=0.95), "native": AimConfig(precision=0.9)}
"""An invasive animal must not be missed; the name of a native animal must be right."""


class UnknownConfig(Record):
    """A floor, chosen on val: with a probability below it, an animal is unknown even if a native class is the most probable."""

    keep: Share = Field(default=0.95, description="share of the correctly named val crops that must stay above the floor")
    held_out_classes: tuple[str, ...] = Field(
        default=(), description="classes that stand for unknown animals: the floor is chosen without the model's probability of their own class"
    )


class ThresholdsConfig(Record):
    """How the thresholds are chosen on val. They are written as Animl's categoryConfig."""

    invasive: tuple[str, ...] = Field(default=(), description="classes that must not be missed; all others are native")
    aims: dict[str, AimConfig] = Field(default=DEFAULT_AIMS, description="group (invasive, native) or class → aim; that of a class goes first")
    confidence: Share = Field(
        default=0.8,
        ge=0.5,
        lt=1,
        description="how sure it must be that an aim holds at other locations; where the locations do not show it, the aim is reached on their crops",
    )
    unknown: UnknownConfig | None = Field(default=None, description="null: no floor; an animal is unknown if it reaches no class's threshold")

    def group_of(self, class_id: str) -> Group:
        """The group of a class."""
        return "invasive" if class_id in self.invasive else "native"

    def aim_of(self, class_id: str) -> AimConfig:
        """The aim of a class: its own, else that of its group."""
        group = self.group_of(class_id)
        return self.aims.get(class_id) or self.aims.get(group) or DEFAULT_AIMS[group]

    def group_of_parent(self, children: Sequence[str]) -> Group:
        """The group of a parent class: invasive if any of its children is."""
        return "invasive" if any(c in self.invasive for c in children) else "native"

    def aim_of_parent(self, parent: str, children: Sequence[str]) -> AimConfig:
        """The aim of a parent class: its own, else the strictest aim of its children in its group."""
        group = self.group_of_parent(children)
        return self.aims.get(parent) or max((self.aim_of(c) for c in children if self.group_of(c) == group), key=_strictness)

    def check(self, classes: tuple[str, ...], parents: Collection[str] = ()) -> None:
        """Check that all classes in this section are classes of the plan; ``aims`` may also name parents.

        Raises:
            ValueError: one is not.
        """
        held_out = self.unknown.held_out_classes if self.unknown else ()
        named = {"invasive": self.invasive, "aims": set(self.aims) - {*DEFAULT_AIMS, *parents}, "unknown.held_out_classes": held_out}
        unknown = [f"thresholds.{key}: {text}" for key, names in named.items() if (text := explain_unknown_classes(names, classes))]
        if unknown:
            raise ValueError("; ".join(unknown))


def _strictness(aim: AimConfig) -> tuple[float, float, float]:
    """What a strict aim has more of than another: recall first, then precision, then few false alarms."""
    alarms = aim.max_false_alarms_per_1000
    return aim.recall or 0.0, aim.precision or 0.0, 0.0 if alarms is None else 1000 - alarms


class GateConfig(Record):
    """When a model may be released. The champion is the released model; both models answer for the same test images.

    With the plan's section `production`, mean F1, recall and false alarms are those of sequences, with detector, classifier and thresholds
    together. Without it, they are those of test crops. ``min_macro_f1`` holds for both.
    """

    min_examples: int = Field(default=10, ge=0, description="test crops of every class; with fewer: need_more_data")
    min_locations: int = Field(default=2, ge=0, description="test locations of every class; with fewer: need_more_data")
    min_macro_f1: Share = Field(default=0.3, description="mean F1, on crops and as in production; if either is lower: hold, also for a first model")
    max_macro_f1_drop: Share = Field(default=0.01, description="largest drop of the mean F1 below the champion's; if it is larger: hold")
    max_invasive_recall_drop: Share = Field(default=0.02, description="largest drop of an invasive class's recall; if it is larger: hold")
    min_invasive_sequence_recall: Share | None = Field(
        default=None, description="least share of the sequences with an invasive class that must be found; if it is lower: hold; null: more than 0"
    )
    max_false_alarms_per_1000_empty: float | None = Field(
        default=None, ge=0, le=1000, description="most empty sequences, of 1,000, that may get a label; if there are more: hold"
    )
    max_false_alarm_rise_per_1000_empty: float = Field(
        default=20, ge=0, le=1000, description="largest rise of these false alarms above the champion's; if it is larger: hold"
    )
    first_model: str | None = Field(
        default=None, description="the plan's model, if a person knows that none of it is in service although the store does not prove it"
    )


class AutoAcceptConfig(Record):
    """Which images may go without review, because few of them hold an invasive animal."""

    max_invasive_per_1000: float = Field(
        default=5, gt=0, lt=1000, description="most of 1,000 images without review, at a mean location, that may hold an invasive animal"
    )


class AuditConfig(Record):
    """The search for wrong labels: crops with a label that the model strongly disagrees with."""

    folds: int = Field(
        default=0, ge=0, le=20, description="0: audit val and test; k: also train, with k more trainings, each without a part of the locations"
    )
    show: int = Field(default=24, ge=0, le=500, description="suspect labels shown as images in the report; the table has all")

    @model_validator(mode="after")
    def _not_one_fold(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds: expected 0 or at least 2, found 1; with one fold nothing would be left to train on")
        return self


class ProductionConfig(Record):
    """How detector and classifier are used together in production."""

    detector_confidence: float = Field(
        default=0.1, gt=0, lt=1, description="confidence from which the project's rule in Animl sends a detector's box to the classifier"
    )
    sequence_gap_seconds: float = Field(
        default=3, ge=0, le=3600, description="images of a location that are at most this far apart are one sequence, as in TNC's own score"
    )
    max_sequences_per_location: int | None = Field(
        default=2000,
        ge=1,
        description="of each test location, at most so many sequences with the plan's classes and so many others are scored; null: all",
    )
