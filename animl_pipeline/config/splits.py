"""How places are shared out to train, val and test."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.config.fields import Seed
from animl_pipeline.core.records import Record


class SplitsConfig(Record):
    """How places are shared out. A place is on one side only, always."""

    val: float = Field(default=0.15, gt=0, lt=0.5)
    test: float = Field(default=0.2, gt=0, lt=0.5)
    seed: Seed = 0
    tries: int = Field(default=20, ge=1, le=10**6, description="rounds of the search for balanced shares, at most")
    min_per_class: int = Field(default=10, ge=1, description="examples of each class in val and in test, where they can be had")
    min_locations_per_class: int = Field(default=1, ge=1, description="places with each class in val and in test, where they can be had")
    train_only: tuple[str, ...] = Field(default=(), description="places that are never tested on, as <source>/<place>")
    test_only: tuple[str, ...] = Field(default=(), description="places that are never trained on, as <source>/<place>")
    train_only_before: datetime.date | None = Field(default=None, description="pictures taken before this day are only trained on")
    test_only_after: datetime.date | None = Field(default=None, description="pictures taken on this day or later are only tested on")
    unknown_location: Literal["drop", "train"] = Field(
        default="drop", description="pictures that do not say where they were taken: a test place may be among them"
    )
    sequence_gap_seconds: float = Field(
        default=5, ge=0, le=3600, description="pictures so close in time may be one burst, where there are no sequences"
    )
    near_duplicate_bits: int | None = Field(default=12, ge=0, le=20, description="of 128 bits that copies may differ in; null: not looked for")
    test_set: int = Field(default=1, ge=1, description="raised by one, the frozen test set is thawed and drawn anew")

    @model_validator(mode="after")
    def _one_side_each(self) -> Self:
        both = sorted(set(self.train_only) & set(self.test_only))
        if both:
            raise ValueError(f"the place {both[0]!r} is in train_only and in test_only; a place lies on one side")
        if self.train_only_before and self.test_only_after and self.test_only_after < self.train_only_before:
            raise ValueError(
                f"test_only_after ({self.test_only_after}) is before train_only_before ({self.train_only_before}): "
                "pictures taken between them could be on no side"
            )
        return self

    def check_locations(self, spaces: Collection[str]) -> None:
        """See that each place that is named could be one of the sources'.

        Raises:
            ValueError: one has no source's name (or `places`) before it.
        """
        for key, names in (("train_only", self.train_only), ("test_only", self.test_only)):
            for name in names:
                space, _, location = name.partition("/")
                if space not in spaces or not location:
                    known = ", ".join(f"{s}/<place>" for s in sorted(spaces))
                    raise ValueError(f"splits.{key}: expected {known}, found {name!r}")
