"""When a new training is worth it."""

from __future__ import annotations

from pydantic import Field

from animl_pipeline.core.records import Record


class WatchConfig(Record):
    """What the flow `watch` looks for in Animl."""

    new_images: int = Field(default=500, ge=1, le=10**9, description="images validated since the last training that are worth a new one")
