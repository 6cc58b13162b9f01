"""How a model is judged: which classes must not be missed, what thresholds are to reach, when it may be released."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.core.artifacts import Record, Share

Group = Literal["invasive", "native"]


class AimConfig(Record):
    """What a class's threshold is to reach on val: one measure, or several at once."""

    recall: Share | None = Field(default=None, description="at least; without other aims the highest threshold that reaches it is taken")
    precision: Share | None = Field(default=None, description="at least; without a recall the lowest threshold from 0.5 on that reaches it is taken")
    max_false_alarms_per_1000: float | None = Field(default=None, ge=0, le=1000, description="crops of other classes named so, of 1000 crops")

    @model_validator(mode="after")
    def _aims_at_something(self) -> Self:
        if self.recall is None and self.precision is None and self.max_false_alarms_per_1000 is None:
            raise ValueError("an aim without recall, precision or max_false_alarms_per_1000; give at least one of them")
        return self

    def __str__(self) -> str:
        """The aim as a person writes it."""
        parts = [
            f"recall >= {self.recall:g}" if self.recall is not None else "",
            f"precision >= {self.precision:g}" if self.precision is not None else "",
            f"at most {self.max_false_alarms_per_1000:g} false alarms per 1000" if self.max_false_alarms_per_1000 is not None else "",
        ]
        return " and ".join(filter(None, parts))


USUAL_AIMS: dict[str, AimConfig] = {"invasive": AimConfig(recall=0.95), "native": AimConfig(precision=0.9)}
"""An invader must not be missed; a native animal's name must be right."""


class UnknownConfig(Record):
    """When an animal is unknown although a native class leads: its probability is below a floor, chosen on val."""

    keep: Share = Field(default=0.95, description="share of the rightly named val crops that the floor may not make unknown")
    left_out: tuple[str, ...] = Field(
        default=(), description="classes that stand in for strangers: their own answer is struck out to choose the floor"
    )


class ThresholdsConfig(Record):
    """From which probability on a class is named: chosen on val, written as Animl's categoryConfig."""

    invasive: tuple[str, ...] = Field(default=(), description="classes that must not be missed; all others are native")
    aims: dict[str, AimConfig] = Field(default=USUAL_AIMS, description="by group (invasive, native) or by class, which goes first")
    unknown: UnknownConfig | None = Field(default=None, description="null: no floor; an animal is unknown where no class reaches its threshold")

    def group_of(self, class_id: str) -> Group:
        """The group of a class."""
        return "invasive" if class_id in self.invasive else "native"

    def aim_of(self, class_id: str) -> AimConfig:
        """The aim of a class: its own, else its group's."""
        group = self.group_of(class_id)
        return self.aims.get(class_id) or self.aims.get(group) or USUAL_AIMS[group]

    def check(self, classes: tuple[str, ...]) -> None:
        """See that every class that is spoken of is one of the plan's.

        Raises:
            ValueError: one is not.
        """
        unknown = self.unknown.left_out if self.unknown else ()
        spoken = {"invasive": self.invasive, "aims": set(self.aims) - set(USUAL_AIMS), "unknown.left_out": unknown}
        for key, names in spoken.items():
            for name in sorted(set(names) - set(classes)):
                raise ValueError(f"thresholds.{key}: {name!r} is no class of labels.classes ({', '.join(classes)})")


class GateConfig(Record):
    """When a model may be released. The champion is the model that was released last; both answer the same test crops."""

    min_examples: int = Field(default=10, ge=0, description="test crops of every class; fewer: need_more_data")
    min_locations: int = Field(default=2, ge=0, description="test places of every class; fewer: need_more_data")
    min_macro_f1: Share = Field(default=0.0, description="less: hold, also for a first model")
    max_macro_f1_drop: Share = Field(default=0.01, description="more than this below the champion: hold")
    max_invasive_recall_drop: Share = Field(default=0.02, description="of any invasive class, more than this below the champion: hold")


class AuditConfig(Record):
    """The search for wrong labels: crops whose label the model firmly disbelieves."""

    folds: int = Field(default=0, ge=0, le=20, description="0: val and test only; k: also train, by k further trainings without a k-th of the places")
    show: int = Field(default=24, ge=0, le=500, description="pictures in the report; the table holds all")

    @model_validator(mode="after")
    def _folds_are_several(self) -> Self:
        if self.folds == 1:
            raise ValueError("folds: expected 0 or at least 2, found 1; with one fold there would be nothing to train on")
        return self
