"""The plan's section `splits`: how locations are divided into train, val and test."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.config.value_types_and_messages import PathOrUrl, Seed
from animl_pipeline.core.frozen_record import Record


class SplitsConfig(Record):
    """How locations are divided into train, val and test. A location is always in one split only."""

    val: float = Field(default=0.15, gt=0, lt=0.5, description="share of the crops in val")
    test: float = Field(default=0.2, gt=0, lt=0.5, description="share of the crops in test")
    seed: Seed = Field(default=0, description="of the search; another seed divides new locations otherwise")
    table: PathOrUrl | None = Field(
        default=None,
        description="a CSV with the columns location (<source>/<location>) and split (train, val, test), which divides the locations"
        " exactly; those that it lacks are left out; null: the locations are divided by search",
    )
    max_rounds: int = Field(default=20, ge=1, le=10**6, description="at most this many rounds of the search for balanced splits")
    min_per_class: int = Field(default=10, ge=1, description="crops of each class in val and in test, where there are enough")
    min_locations_per_class: int = Field(default=1, ge=1, description="locations with each class in val and in test, where there are enough")
    train_only: tuple[str, ...] = Field(default=(), description="locations that are never used for testing, as <source>/<location>")
    test_only: tuple[str, ...] = Field(default=(), description="locations that are never used for training, as <source>/<location>")
    train_only_before: datetime.date | None = Field(default=None, description="images taken before this day are only used for training")
    test_only_after: datetime.date | None = Field(default=None, description="images taken on this day or later are only used for testing")
    test_after: datetime.date | None = Field(
        default=None,
        description="a second test, on known cameras: images of the training locations taken on this day or later are only used for that test",
    )
    unknown_location: Literal["drop", "train"] = Field(
        default="drop", description="images without a location; careful with train: they may show a location of the test set"
    )
    sequence_gap_seconds: float = Field(
        default=5, ge=0, le=3600, description="where an export has no sequences, images this close in time count as one sequence"
    )
    near_duplicate_bits: int | None = Field(
        default=12, ge=0, le=20, description="near-duplicates differ in at most this many of 128 bits; null: do not look for them"
    )
    test_set: int = Field(default=1, ge=1, description="number of the frozen test set; a higher number starts a new test set")

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        both = sorted(set(self.train_only) & set(self.test_only))
        if both:
            raise ValueError(f"the location {both[0]!r} is in train_only and in test_only; a location is in one split only")
        if self.table and (self.train_only or self.test_only):
            raise ValueError("table: gives the split of each location, so train_only and test_only have no meaning; remove them")
        if self.train_only_before and self.test_only_after and self.test_only_after < self.train_only_before:
            raise ValueError(
                f"test_only_after ({self.test_only_after}) is before train_only_before ({self.train_only_before}): "
                "images taken between them could be in no split"
            )
        if self.train_only_before and self.test_after and self.test_after < self.train_only_before:
            raise ValueError(
                f"test_after ({self.test_after}) is before train_only_before ({self.train_only_before}): "
                "images taken between them would be tested and only trained on"
            )
        return self

    def check_locations(self, namespaces: Collection[str]) -> None:
        """Check that each named location can be one of the sources' locations.

        Raises:
            ValueError: a location does not start with a source's name (or `location_namespace`).
        """
        for key, names in (("train_only", self.train_only), ("test_only", self.test_only)):
            for name in names:
                namespace, _, location = name.partition("/")
                if namespace not in namespaces or not location:
                    known = ", ".join(f"{n}/<location>" for n in sorted(namespaces))
                    raise ValueError(f"splits.{key}: expected {known}, found {name!r}")
