"""Choose the groups that are worth a swap, where scoring all of them would take too long.

The largest part of a split's score is a weighted sum of squared differences. Its change by a swap follows from products of the groups'
counts with each other, which are computed once, and with what the splits lack, which are updated with each change. So a swap is
estimated in a few additions, whatever the number of classes. All products are of whole numbers, and exact: the order of the additions,
which differs between machines, changes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SCALE = 2.0**18
"""Counts become whole numbers of this many parts of their total. A sum of their products stays below 2^53 for 30,000 columns."""


class SwapEstimates:
    """Estimates for the current splits of g groups.

    Args:
        amounts: [3, g, c] what a group brings to each split.
        weights: [3, c] weight of a squared difference from the target.
        targets: [3, c] what each split should hold.
    """

    def __init__(self, amounts: Floats, weights: Floats, targets: Floats) -> None:
        root = np.sqrt(weights) * SCALE
        self._scaled = [np.round(amounts[0] * root[0])]
        self._products = [self._scaled[0] @ self._scaled[0].T]
        for split in (1, 2):  # without days in the plan, a group brings the same to all splits
            same = np.array_equal(amounts[split], amounts[0]) and np.array_equal(weights[split], weights[0])
            self._scaled.append(self._scaled[0] if same else np.round(amounts[split] * root[split]))
            self._products.append(self._products[0] if same else self._scaled[split] @ self._scaled[split].T)
        self._targets = np.round(targets * root)
        self._lacking = np.zeros((3, amounts.shape[1]))

    def start(self, splits: Ints) -> None:
        """Begin with these splits: int [g]."""
        for split, scaled in enumerate(self._scaled):
            self._lacking[split] = scaled @ (scaled[splits == split].sum(0) - self._targets[split])

    def move(self, group: int, now: int, to: int) -> None:
        """Take in that a group has moved from one split to another."""
        self._lacking[now] -= self._products[now][group]
        self._lacking[to] += self._products[to][group]

    def best_partners(self, group: int, now: int, to: int, partners: Ints, n: int) -> Ints:
        """The n of some groups of the split ``to`` whose swap with ``group`` is estimated to be best, in the order of their numbers."""
        change = 2 * (self._lacking[now][partners] - self._lacking[to][partners])
        for split in (now, to):
            products = self._products[split]
            change += products[partners, partners] - 2 * products[group, partners]
        return np.sort(partners[np.argsort(change, kind="stable")[:n]])
