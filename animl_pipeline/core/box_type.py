"""Boxes: ``[ymin, xmin, ymax, xmax]``, relative to the image's height and width.

The whole code uses this order. Other orders are converted where files and answers are read or written.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from animl_pipeline.core.frozen_record import Record

BoxTuple = tuple[float, float, float, float]
"""A box as plain numbers, ``(ymin, xmin, ymax, xmax)``, where there are too many for records."""
Frame = Literal["auto", "stored", "shown"]
"""A plan's word for the frame of boxes: the pixels as stored, or the image as shown, turned by its EXIF orientation; auto: work it out."""


def clip_box(box: BoxTuple) -> BoxTuple | None:
    """The part of a box that is in the image; None for a box that does not overlap the image or is not made of numbers."""
    ymin, xmin, ymax, xmax = (min(max(float(value), 0.0), 1.0) for value in box)
    return (ymin, xmin, ymax, xmax) if ymin < ymax and xmin < xmax else None


class Box(Record):
    """An axis-aligned box, relative to the image's height and width: 0 <= min < max <= 1."""

    ymin: float = Field(ge=0, le=1)
    xmin: float = Field(ge=0, le=1)
    ymax: float = Field(ge=0, le=1)
    xmax: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.ymin < self.ymax and self.xmin < self.xmax):
            raise ValueError(f"an empty box: [ymin, xmin, ymax, xmax] = {self.as_list()}")
        return self

    def as_list(self) -> list[float]:
        """The box as ``[ymin, xmin, ymax, xmax]``."""
        return [self.ymin, self.xmin, self.ymax, self.xmax]

    @classmethod
    def of(cls, values: BoxTuple | list[float]) -> Box:
        """A box from ``[ymin, xmin, ymax, xmax]``."""
        ymin, xmin, ymax, xmax = values
        return cls(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)


WHOLE_IMAGE = Box(ymin=0, xmin=0, ymax=1, xmax=1)
