"""The confusion matrix as a PNG file, and the points of curves: precision against recall, risk against saved work.

Does not use pyplot, which has global state.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.core.evaluation_results import AutoAccept, Metrics
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column

MAX_POINTS = 200
"""Points of a curve; more make no visible difference at the size of the plot."""


class Curve(NamedTuple):
    """A precision-recall curve of one class against the rest.

    ``share``: share of the test set that is of this class, which is the precision of guessing. ``points``: (recall, precision) by rising
    recall, to be joined by steps.
    """

    class_id: str
    average_precision: float
    share: float
    points: tuple[tuple[float, float], ...]


def precision_recall_curves(scored: pd.DataFrame, metrics: Metrics) -> list[Curve]:
    """A curve for each class that the test set has."""
    from sklearn.metrics import precision_recall_curve

    curves = []
    for c in metrics.classes:
        if c.average_precision is None:
            continue
        precision, recall, _ = precision_recall_curve(scored["class_id"] == c.id, scored[probability_column(c.id)], drop_intermediate=True)
        points = np.stack([recall[-2::-1], precision[-2::-1]], axis=1)  # without scikit-learn's extra point at recall 0, precision 1
        points = points[: int(np.argmax(points[:, 0])) + 1]  # after recall 1, lower thresholds only add false alarms
        kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).round().astype(int))
        curves.append(Curve(c.id, c.average_precision, c.examples / metrics.examples, tuple((float(x), float(y)) for x, y in points[kept])))
    return curves


class RiskCurve(NamedTuple):
    """Risk against the work that is saved without review, for one class. Coordinates are from 0 to 1; the risk is on a logarithmic axis.

    Attributes:
        class_id: the class.
        bound: (work saved, 95 % bound of the risk) of each threshold, by rising work.
        observed: (work saved, observed risk); below the axis: at 0.
        chosen: the point of the chosen threshold on ``bound``; None if there is none.
    """

    class_id: str
    bound: tuple[tuple[float, float], ...]
    observed: tuple[tuple[float, float], ...]
    chosen: tuple[float, float] | None


class RiskAxes(NamedTuple):
    """The axes that all risk curves share: their ends, the ticks of the risk (label, position), the position of the limit, and the curves."""

    most_work: float
    ticks: tuple[tuple[str, float], ...]
    limit: float
    curves: tuple[RiskCurve, ...]


def risk_curves(found: AutoAccept) -> RiskAxes | None:
    """The curves of the classes that skip any image; None if there is none."""
    shown = [c for c in found.classes if c.points]
    if not shown:
        return None
    least = min(0, math.floor(math.log10(found.max_invasive_per_1000 / 2)))
    most_work = max(0.05, math.ceil(20 * max(p.work_saved for c in shown for p in c.points)) / 20)

    def height(per_1000: float) -> float:
        return max(0.0, (math.log10(per_1000) - least) / (3 - least)) if per_1000 > 0 else 0.0

    curves = []
    for c in shown:
        work = [p.work_saved / most_work for p in c.points]
        bound = tuple((x, height(p.bound_per_1000)) for x, p in zip(work, c.points, strict=True))
        observed = tuple((x, height(p.observed_per_1000)) for x, p in zip(work, c.points, strict=True))
        chosen = bound[c.points.index(c.point)] if c.answer == "skip" and c.point else None
        curves.append(RiskCurve(c.id, bound, observed, chosen))
    ticks = tuple((f"{10**i:g}", height(10**i)) for i in range(least, 4))
    return RiskAxes(most_work, ticks, height(found.max_invasive_per_1000), tuple(curves))


def confusion_matrix_png(metrics: Metrics) -> bytes:
    """The confusion matrix: counts, coloured by the share of each true class. The same bytes for the same metrics."""
    from matplotlib.figure import Figure

    ids, outputs = [c.id for c in metrics.classes], metrics.outputs()
    counts = np.asarray(metrics.confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 1.6 + 0.62 * len(ids))
    figure = Figure(figsize=(side + 0.8, side), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(outputs)), outputs, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
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
