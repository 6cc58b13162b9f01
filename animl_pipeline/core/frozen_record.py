"""The base class of all frozen records, and types of their fields."""

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
