"""The base class of all records, and what a step produced: its artifact and its counts."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 in lower-case hexadecimal."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction between 0 and 1."""


class Record(BaseModel):
    """The base class of records: frozen, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Counts(Record):
    """How many items a step kept and dropped, by reason. ``notes`` holds other counts that a reader should know."""

    kept: int = Field(ge=0)
    dropped: dict[str, int] = {}
    notes: dict[str, int] = {}
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
