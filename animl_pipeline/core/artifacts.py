"""What a step made: the record of its artifact, and what it kept and dropped."""

from __future__ import annotations

from typing import Protocol

from pydantic import Field

from animl_pipeline.core.frozen_record import Digest, Record

CURVES_FILE = "curves.png"
"""The step training's plot of how it went."""


class Counts(Record):
    """How many items a step kept and dropped, by reason. ``notes`` holds other counts that a reader should know.

    A note ``<reason>: <name>`` says how many of the items dropped for a reason have a name, such as a label that the plan lacks.
    """

    kept: int = Field(ge=0)
    dropped: dict[str, int] = Field(default={})
    notes: dict[str, int] = Field(default={})
    unit: str = "objects"

    def __str__(self) -> str:
        """One line for log messages."""
        parts = [f"{self.kept:,} {self.unit} kept"]
        if self.dropped:
            parts.append(f"{sum(self.dropped.values()):,} dropped ({self.drop_reasons()})")
        if others := self.other_notes():
            parts.append("also: " + ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in sorted(others.items())))
        return "; ".join(parts)

    def drop_reasons(self) -> str:
        """Why items were dropped, with numbers and names: ``3 no location, 9 unlisted label (goat 8, heron 1)``; "" if none was."""
        return ", ".join(f"{n:,} {reason.replace('_', ' ')}{self._names_in_brackets(reason)}" for reason, n in sorted(self.dropped.items()))

    def names_of(self, reason: str) -> dict[str, int]:
        """Name → how many of the items dropped for ``reason`` have it, the most frequent first."""
        start = f"{reason}: "
        found = {what.removeprefix(start): n for what, n in self.notes.items() if what.startswith(start)}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def other_notes(self) -> dict[str, int]:
        """The notes that are no names of dropped items."""
        return {what: n for what, n in self.notes.items() if what.partition(": ")[0] not in self.dropped}

    def _names_in_brackets(self, reason: str) -> str:
        names = ", ".join(f"{name} {n:,}" for name, n in self.names_of(reason).items())
        return f" ({names})" if names else ""


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


class BlobReader(Protocol):
    """Whatever gives the bytes of images by their sha256: a store, or a folder of images."""

    def blob(self, sha256: str) -> bytes:
        """The bytes with this sha256."""
        ...
