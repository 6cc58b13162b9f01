"""Of boxes that lie on the same object, the most certain one: greedy non-maximum suppression in numpy.

numpy rather than torchvision, so that a run whose networks are in the cache never loads torch, which takes seconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def suppress(boxes: Floats, scores: Floats, classes: NDArray[np.intp], max_overlap: float, most: int = 300) -> NDArray[np.intp]:
    """Which boxes stay, most certain first.

    Args:
        boxes: [n, 4], left, top, right, bottom.
        scores: [n].
        classes: [n]; boxes of different classes do not displace each other.
        max_overlap: intersection over union above which the less certain of two goes.
        most: how many stay at most.
    """
    left, top, right, bottom = (boxes - boxes.min(initial=0) + classes[:, None] * (np.ptp(boxes) + 1 if len(boxes) else 0)).T  # a plane a class
    area = (right - left) * (bottom - top)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        width = np.minimum(right[order], right[best]) - np.maximum(left[order], left[best])
        height = np.minimum(bottom[order], bottom[best]) - np.maximum(top[order], top[best])
        shared = width.clip(0) * height.clip(0)
        order = order[shared <= max_overlap * (area[best] + area[order] - shared)]
    return np.asarray(kept, np.intp)
