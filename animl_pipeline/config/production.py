"""The plan's section `production`: how Animl will use the model, so that the test set can be scored in the same way."""

from __future__ import annotations

from pydantic import Field

from animl_pipeline.core.frozen_record import Record


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
