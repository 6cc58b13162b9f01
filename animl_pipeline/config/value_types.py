"""Types of plan values that several sections use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""At most 40 small letters, digits and hyphens."""
PathOrUrl = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[^\x00-\x1f]+$")]
"""A path or an address: one line of text."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10**9)]


def shorten(value: Any) -> str:
    """A value as a message shows it, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
