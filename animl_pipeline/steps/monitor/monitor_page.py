"""Render monitor.html: how the model in service does, on one page without scripts or outside addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.core.report_formats import page_environment
from animl_pipeline.steps.monitor.model_figures_in_service import BIAS, OF_RANDOM
from animl_pipeline.steps.monitor.monitor_result_in_words import ServiceStatus
from animl_pipeline.steps.monitor.sequential_test import ClassTest
from animl_pipeline.steps.monitor.service_outcomes import ServedModel
from animl_pipeline.steps.monitor.unreviewed_look import UnreviewedLook

TEMPLATE = "monitor.html.j2"
MAX_POINTS = 200
MAX_LOCATIONS = 60
EDGES = {"Healthy": "promote", "Degraded": "hold", "NotEnoughReviewed": "need_more_data"}
"""State → the style of its box."""
METRICS = {
    "sequence_recall": "recall, sequences", "sequence_precision": "precision, sequences", "recall": "recall, objects",
    "precision": "precision, objects", "mean_confidence": "mean confidence",
}  # fmt: skip
OF_SEQUENCES = ("sequence_recall", "sequence_precision")
OF_IMAGES = {"share_reviewed": "images reviewed", "unknown_rate": "animals without a name"}


class Figure(NamedTuple):
    """One figure with its interval (None where it has none) and what it is a share of."""

    value: float
    interval: tuple[float, float] | None
    of: int


class MonthPlot(NamedTuple):
    """A class's monthly figures from 0 to 100, the y axis pointing down: a line, the band of its intervals, and the months at both ends."""

    title: str
    line: list[tuple[float, float]]
    band: list[tuple[float, float]]
    first: str
    last: str


class CusumPlot(NamedTuple):
    """A test's sum as a share of its threshold: a line from 0 to 100, and where it alarmed."""

    title: str
    line: list[tuple[float, float]]
    alarms: list[float]
    state: str


def render_page(
    status: ServiceStatus,
    metrics: pd.DataFrame,
    tests: Sequence[ClassTest],
    outcomes: pd.DataFrame,
    cameras: pd.DataFrame,
    look: UnreviewedLook,
    model: ServedModel,
    day: str,
) -> str:
    """The page as HTML. All text from Animl is escaped.

    Args:
        status: the result in words.
        metrics: SERVICE_METRICS.
        tests: the tests of all classes.
        outcomes: SEQUENTIAL_TESTS.
        cameras: CAMERA_ACTIVITY.
        look: at unreviewed images.
        model: its classes, and which version served when.
        day: the last of the recent days.
    """
    wide = [*OF_SEQUENCES, *OF_IMAGES]
    locations = _rows(metrics, "location", wide)
    page: str = (
        page_environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            status=status, edge=EDGES[status.state], day=day, bias=BIAS, metrics=METRICS, of_images=OF_IMAGES,
            wide=wide, wide_titles=[(METRICS | OF_IMAGES)[name] for name in wide],
            classes=_rows(metrics, "all", list(METRICS), by_class=True), fair_metrics={name: METRICS[name] for name in OF_RANDOM},
            fair=_rows(metrics, "all", list(METRICS), by_class=True, sample="random"),
            whole={m: _figure(metrics, m, "all", "", "") for m in OF_IMAGES}, months=_rows(metrics, "month", wide),
            versions=_rows(metrics, "version", list(METRICS), by_class=True), light=_rows(metrics, "light", wide),
            locations=locations[:MAX_LOCATIONS], all_locations=len(locations), cameras=cameras[cameras["problem"] != ""].to_dict("records"),
            look=look, month_plots=[p for t in tests if (p := _month_plot(metrics, t)) is not None],
            test_plots=[c for t in tests if (c := _test_plot(outcomes, t)) is not None],
            served=[(str(np.datetime64(int(start), "s"))[:10], version) for start, version in model.served],
        )
    )  # fmt: skip
    return page


def _rows(metrics: pd.DataFrame, by: str, wanted: Sequence[str], *, by_class: bool = False, sample: str = "reviewed") -> list[dict[str, Any]]:
    """A row for each part (and class), with its figures by metric."""
    chosen = metrics[(metrics["by"] == by) & (metrics["sample"] == sample) & metrics["metric"].isin(wanted)]
    chosen = chosen if by_class else chosen[chosen["class_id"] == ""]
    rows: dict[tuple[str, str], dict[str, Figure]] = {}
    for row in chosen.sort_values(["group", "class_id"]).to_dict("records"):
        rows.setdefault((row["group"], row["class_id"]), {})[row["metric"]] = _as_figure(row)
    return [{"group": group, "class_id": class_id, "figures": figures} for (group, class_id), figures in rows.items()]


def _figure(metrics: pd.DataFrame, metric: str, by: str, group: str, class_id: str) -> Figure | None:
    keys = {"sample": "reviewed", "metric": metric, "by": by, "group": group, "class_id": class_id}
    found = metrics[np.logical_and.reduce([metrics[name] == value for name, value in keys.items()])]
    return next((_as_figure(row) for row in found.to_dict("records")), None)


def _as_figure(row: Mapping[Any, Any]) -> Figure:
    return Figure(row["value"], None if np.isnan(row["low"]) else (row["low"], row["high"]), int(row["count"]))


def _month_plot(metrics: pd.DataFrame, test: ClassTest) -> MonthPlot | None:
    metric = f"sequence_{test.metric}"
    chosen = (metrics["metric"] == metric) & (metrics["by"] == "month") & (metrics["sample"] == "reviewed") & (metrics["group"] != "")
    rows = metrics[chosen & (metrics["class_id"] == test.class_id)].sort_values("group")
    if len(rows) < 2:
        return None
    months = pd.PeriodIndex(rows["group"], freq="M")
    number = (months.year * 12 + months.month).to_numpy(np.float64)
    x = (100 * (number - number[0]) / (number[-1] - number[0])).tolist()
    value, low, high = ((100 - 100 * rows[name].fillna(rows["value"])).tolist() for name in ("value", "low", "high"))
    band = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
    line = list(zip(x, value, strict=True))
    return MonthPlot(f"{test.metric} of {test.class_id}", line, band, str(rows["group"].iloc[0]), str(rows["group"].iloc[-1]))


def _test_plot(outcomes: pd.DataFrame, test: ClassTest) -> CusumPlot | None:
    rows = outcomes[(outcomes["metric"] == test.metric) & (outcomes["class_id"] == test.class_id) & outcomes["statistic"].notna()]
    if len(rows) < 2:
        return None
    share, alarm = (rows["statistic"] / rows["threshold"]).to_numpy(np.float64), rows["alarm"].to_numpy(bool)
    x = np.linspace(0, 100, len(rows))
    part = np.linspace(0, len(rows), MAX_POINTS + 1).astype(int)
    kept = sorted({int(a + np.argmax(share[a:b])) for a, b in pairwise(part) if b > a} | {0, len(rows) - 1})
    return CusumPlot(f"{test.metric} of {test.class_id}", [(float(x[i]), float(100 - 100 * share[i])) for i in kept], x[alarm].tolist(), test.state)
