"""Which boxes of an export can be used: those in pixels, and those between 0 and 1, that lie in their image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from animl_pipeline.steps.export.columns_from_json import BAD_BOX, BOX, Bools, Floats, format_box

SLACK = 1
"""Pixels by which a box may reach over the edge of its image without a note: exports round their boxes."""
RELATIVE_SLACK = 0.01
"""The same as a share of the image, for relative boxes."""
LABEL_IS_KEPT = "the label is kept for the whole image"


def are_relative(boxes: Floats, sizes: Any) -> bool:
    """Whether all boxes of a file are between 0 and 1, although its images are larger than a pixel.

    Args:
        boxes: [n, 4] x, y, width and height; NaN without a box.
        sizes: [n, 2] width and height of the image in pixels; 0 where unknown, 1 where boxes are known to be relative, -1 for no image.
    """
    counted = ~np.isnan(boxes).any(1) & (sizes.min(1) >= 0) & (sizes.max(1) != 1)
    x, y, w, h = boxes[counted].T
    inside = (np.minimum(x, y) >= -RELATIVE_SLACK) & (np.maximum(x + w, y + h) <= 1 + RELATIVE_SLACK)
    return bool(counted.any() and inside.all())


def with_unit_sizes(images: pa.Table) -> pa.Table:
    """The images, with 1 x 1 as the size of those whose size is unknown, so that relative boxes are right for them, too."""
    unknown = (images["width"].to_numpy() == 0) | (images["height"].to_numpy() == 0)
    for side in ("width", "height"):
        values = np.where(unknown, 1, images[side].to_numpy())
        images = images.set_column(images.schema.get_field_index(side), side, pa.array(values))
    return images


def unusable_boxes(boxes: Floats, kinds: Any, sizes: Any) -> dict[str, Bools]:
    """Reason → which boxes cannot be used for it; the first reason that applies counts. Shapes as in :func:`are_relative`."""
    x, y, w, h = boxes.T
    has_box, has_size = kinds == BOX, sizes.min(1) > 0
    reasons = {
        "box_malformed": kinds == BAD_BOX,
        "box_empty": has_box & ((w <= 0) | (h <= 0)),
        "box_outside": has_box & has_size & ((x >= sizes[:, 0]) | (y >= sizes[:, 1]) | (x + w <= 0) | (y + h <= 0)),
        "box_below_a_pixel": has_box & (sizes.min(1) > 1) & (np.maximum(w, h) < 1),
    }
    listed = np.zeros(len(boxes), bool)
    for reason, mask in reasons.items():
        reasons[reason] = mask & ~listed
        listed |= mask
    return reasons


def is_partly_outside(boxes: Floats, sizes: Any) -> Bools:
    """Which boxes reach over the edge of their image, of those whose image has a known size."""
    x, y, w, h = boxes.T
    slack = np.where(sizes.max(1) == 1, RELATIVE_SLACK, SLACK)
    within = (x >= -slack) & (y >= -slack) & (x + w <= sizes[:, 0] + slack) & (y + h <= sizes[:, 1] + slack)
    return np.asarray((sizes[:, 0] > 0) & ~np.isnan(x) & ~within, bool)


def box_in_image(box: Floats, size: Any) -> str:
    """A box and the size of its image, for a message."""
    return f"bbox {format_box(box)}" + (f" in {size[0]} x {size[1]}" if min(size) > 0 else "")
