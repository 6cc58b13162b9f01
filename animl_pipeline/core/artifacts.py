"""What a step made: the record of its artifact, and what it kept and dropped."""

from __future__ import annotations

from pydantic import Field

from animl_pipeline.core.frozen_record import Digest, Record


class Counts(Record):
    """How many items a step kept and dropped, by reason. ``notes`` holds other counts that a reader should know."""

    kept: int = Field(ge=0)
    dropped: dict[str, int] = Field(default={})
    notes: dict[str, int] = Field(default={})
    unit: str = "objects"

    def __str__(self) -> str:
        """One line for log messages."""
        parts = [f"{self.kept:,} {self.unit} kept"]
        if self.dropped:
            parts.append(f"{sum(self.dropped.values()):,} dropped ({self.drop_reasons()})")
        if self.notes:
            parts.append("also: " + ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in sorted(self.notes.items())))
        return "; ".join(parts)

    def drop_reasons(self) -> str:
        """Why items were dropped, with their numbers: ``3 no location, 1 broken image``; "" if none was."""
        return ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(self.dropped.items()))


class Artifact(Record):
    """The result of a step in the step cache: the step's name, the cache key and the digest of the files.

    ``digest`` covers only the names and contents of the files. Two runs with the same result have the same digest, on any
    machine and at any time. ``cached`` is true if this call reused a stored result.
    """

    step: str
    key: Digest
    digest: Digest
    counts: Counts
    cached: bool = Field(default=False, exclude=True)
