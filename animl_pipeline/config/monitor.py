"""The plan's section `monitor`: how the model in service is watched, and what counts as an alarm."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date

from pydantic import Field

from animl_pipeline.config.value_types_and_messages import explain_unknown_classes
from animl_pipeline.core.frozen_record import Record, Share


class MonitorConfig(Record):
    """Section ``monitor``: the flow of the same name compares the model's labels in Animl with what people validated."""

    since: date | None = Field(default=None, description="only images that were added to Animl since this day; null: since the model's first release")
    reference_sequences: int = Field(
        default=200,
        ge=20,
        le=100_000,
        description="reviewed sequences of a class, by which its usual recall or precision is known; alarms begin after them",
    )
    drop: Share = Field(default=0.15, description="an alarm shall find recall of an invasive or precision of a native class that drops by this much")
    drops: dict[str, Share] = Field(default={}, description="class → another drop; 0: no alarms for this class")
    false_alarms_per_year: float = Field(
        default=0.05, gt=0, le=50, description="of all classes together, so many alarms a year without a drop are accepted"
    )
    recent_days: int = Field(default=30, ge=1, le=366, description="reviews of so many days are recent")
    min_recent_sequences: int = Field(
        default=10, ge=0, description="reviewed sequences of the classes with alarms in these days; with fewer, the result is NotEnoughReviewed"
    )
    review_images: int = Field(
        default=0,
        ge=0,
        le=20_000,
        description="length of the next review list, which each run writes; ten times as many images are looked at, also for strangers and drift; "
        "0: none",
    )
    random_tag: str | None = Field(default=None, description="name of the tag in Animl of images that were drawn at random for review; null: none")
    start_training: bool = Field(default=False, description="whether a new alarm starts a training on the Prefect server")

    def check(self, classes: Collection[str]) -> None:
        """Check that the section names classes of the plan only.

        Raises:
            ValueError: it names another.
        """
        if unknown := explain_unknown_classes(self.drops, tuple(classes)):
            raise ValueError(f"monitor.drops: {unknown}")

    def drop_of(self, class_id: str) -> float:
        """The drop that an alarm for a class shall find; 0 for no alarms."""
        return self.drops.get(class_id, self.drop)
