"""How places are shared out to train, val and test."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.plan.fields import Seed
from animl_pipeline.records import Record


class SplitsPlan(Record):
    """How places are shared out. A place is on one side only, always."""

    val: float = Field(default=0.15, gt=0, lt=0.5)
    test: float = Field(default=0.2, gt=0, lt=0.5)
    seed: Seed = 0
    tries: int = Field(default=2000, ge=1, le=10**6, description="random starts of the search for balanced shares")
    train_only: tuple[str, ...] = Field(default=(), description="places that are never tested on, as <source>/<place>")
    test_only: tuple[str, ...] = Field(default=(), description="places that are never trained on, as <source>/<place>")
    unknown_place: Literal["drop", "train"] = Field(
        default="drop", description="pictures that do not say where they were taken: a test place may be among them"
    )

    @model_validator(mode="after")
    def _one_side_each(self) -> Self:
        both = sorted(set(self.train_only) & set(self.test_only))
        if both:
            raise ValueError(f"the place {both[0]!r} is in train_only and in test_only; a place lies on one side")
        return self
