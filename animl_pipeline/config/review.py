"""The plan's section `review`: which images `animl-pipeline review-next` lists, and whether it marks them in Animl."""

from __future__ import annotations

from pydantic import Field

from animl_pipeline.core.frozen_record import Record, Share


class ReviewConfig(Record):
    """What people are asked to review next."""

    random_share: Share = Field(default=0.1, description="share of a list that is random, for honest figures of the model in service")
    tag: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="name of the tag that listed images get in Animl (`monitor.random_tag` for the random ones); null: nothing is written there",
    )
    write_back: bool = Field(
        default=False,
        description="whether `reinfer --execute` writes changed answers to Animl, as labels of images of which people reviewed nothing",
    )
