"""The confusion matrix as a PNG, and precision-recall curves as points. No state of matplotlib's pyplot is touched."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.records import Metrics
from animl_pipeline.inference.scoring import probability_column

MOST_POINTS = 200
"""Of a curve; more cannot be told apart at the size it is drawn."""


class Curve(NamedTuple):
    """A precision-recall curve: points (recall, precision) by rising recall, to be joined by steps, as average precision sums them.

    ``share`` is the class's share of the test set, the precision that guessing reaches.
    """

    class_id: str
    average_precision: float
    share: float
    points: tuple[tuple[float, float], ...]


def precision_recall_curves(scored: pd.DataFrame, metrics: Metrics) -> list[Curve]:
    """A curve of (recall, precision) for each class that the test set holds, one class against the rest."""
    from sklearn.metrics import precision_recall_curve

    curves = []
    for c in metrics.classes:
        if c.average_precision is None:
            continue
        precision, recall, _ = precision_recall_curve(scored["label"] == c.id, scored[probability_column(c.id)], drop_intermediate=True)
        points = np.stack([recall[-2::-1], precision[-2::-1]], axis=1)  # without sklearn's added end at recall 0, precision 1
        points = points[: int(np.argmax(recall[-2::-1])) + 1]  # all is found: lower thresholds only add false alarms
        curves.append(Curve(c.id, c.average_precision, c.examples / metrics.examples, _thinned(points)))
    return curves


def confusion_png(metrics: Metrics) -> bytes:
    """The confusion matrix as a PNG: counts, coloured by the share of each true class. The same bytes for the same metrics."""
    from matplotlib.figure import Figure

    ids = [c.id for c in metrics.classes]
    counts = np.asarray(metrics.confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 1.6 + 0.62 * len(ids))
    figure = Figure(figsize=(side + 0.8, side), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(ids)), ids, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(ids)), ids, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    for i, j in np.ndindex(*counts.shape):
        if counts[i, j]:
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=9, color="white" if share[i, j] > 0.55 else "#222")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _thinned(points: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    keep = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).round().astype(int))
    return tuple((float(x), float(y)) for x, y in points[keep])
