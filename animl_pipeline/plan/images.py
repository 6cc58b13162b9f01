"""How pictures are fetched."""

from __future__ import annotations

from pydantic import ByteSize, Field

from animl_pipeline.records import Record


class ImagesPlan(Record):
    """How pictures are fetched. Neither changes what a picture is, so another value here makes nothing anew."""

    max_disk: ByteSize | None = Field(default=None, gt=0, description="the store may grow to this, such as 500 GB; what is over it is left out")
