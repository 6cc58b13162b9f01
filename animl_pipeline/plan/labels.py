"""The label specification: which names become which class, and what is left out."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from animl_pipeline.plan.fields import Seed
from animl_pipeline.records import ClassInfo, Record


class ClassPlan(Record):
    """One class of the model: which names of the exports become it, and how many of it at most."""

    from_: tuple[str, ...] = Field(alias="from", min_length=1, description="category names, any case")
    max_count: int | None = Field(default=None, ge=1, description="keep at most this many objects")
    max_per_place: int | None = Field(default=None, ge=1, description="keep at most this many of one place")


class LabelsPlan(Record):
    """Which category names become which class, and what is left out. Names are compared without case."""

    classes: dict[str, ClassPlan] = Field(min_length=2)
    empty: tuple[str, ...] = Field(default=("empty",), description="names that mean: no animal here")
    exclude: tuple[str, ...] = Field(default=(), description="names left out on purpose")
    max_per_place: int | None = Field(default=None, ge=1, description="for classes without their own")
    seed: Seed = Field(default=0, description="which objects a cap keeps")

    @field_validator("classes", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """``fox: [fox, island fox]`` is short for ``fox: {from: [fox, island fox]}``."""
        if not isinstance(value, dict):
            return value
        return {k: {"from": v} if isinstance(v, (list, tuple)) else v for k, v in value.items()}

    @model_validator(mode="after")
    def _one_meaning_each(self) -> Self:
        for class_id in self.classes:
            ClassInfo(id=class_id, name=class_id)
        seen: dict[str, str] = {}
        meanings = [(f"classes.{c}", spec.from_) for c, spec in self.classes.items()] + [("empty", self.empty), ("exclude", self.exclude)]
        for meaning, names in meanings:
            for name in (n.casefold() for n in names):
                if seen.setdefault(name, meaning) != meaning:
                    raise ValueError(f"the name {name!r} is in {seen[name]!r} and in {meaning!r}; a name has one meaning")
        return self

    def class_of(self) -> dict[str, str]:
        """Folded category name → class id."""
        return {name.casefold(): c for c, spec in self.classes.items() for name in spec.from_}
