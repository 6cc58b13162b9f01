"""The scores of two versions side by side: on the test crops that both answered, and as in production."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.core.errors import DamagedError, TableError
from animl_pipeline.core.evaluation_results import ClassComparison, Interval, ProductionScore, Report
from animl_pipeline.core.table_schemas import TEST_PREDICTIONS
from animl_pipeline.storage.store import Store


class OnCrops(NamedTuple):
    """Both versions on the same test crops; intervals are of the change."""

    crops: int
    locations: int
    macro_f1: tuple[float, float]
    macro_f1_interval: Interval | None
    classes: tuple[ClassComparison, ...]


class InProduction(NamedTuple):
    """A class as in production: a score of each version with its own interval; None where it has none."""

    id: str
    recall: tuple[float | None, float | None]
    recall_intervals: tuple[Interval | None, Interval | None]
    precision: tuple[float | None, float | None]
    precision_intervals: tuple[Interval | None, Interval | None]

    def change(self, score: str) -> float | None:
        """The second version's score minus the first's; None if one has none."""
        first, second = getattr(self, score)
        return None if first is None or second is None else second - first


class VersionComparison(NamedTuple):
    """Two versions. ``problem`` says why they were not compared on crops; "" if they were."""

    reports: tuple[Report, Report]
    on_crops: OnCrops | None
    problem: str
    in_production: tuple[InProduction, ...]


def compare_versions(first: Report, second: Report, store: Store) -> VersionComparison:
    """Compare two versions, of the same model or of different ones."""
    try:
        on_crops = _compare_on_crops((first, second), store)
        problem = "" if on_crops else "No test crop of a class that both know was answered by both."
    except (DamagedError, TableError) as e:
        on_crops, problem = None, f"They cannot be compared on crops: {e}"
    scores = (first.metrics.production, second.metrics.production)
    return VersionComparison((first, second), on_crops, problem, _compare_in_production(*scores))


def _compare_on_crops(reports: tuple[Report, Report], store: Store) -> OnCrops | None:
    """Both on the test crops that both answered under the same label, of the classes that both know; None if there are none."""
    from animl_pipeline.steps.evaluation.compare_champion import compare_scores

    one, other = (store.table(report.evaluation, TEST_PREDICTIONS) for report in reports)
    common = tuple(c.id for c in reports[1].metrics.classes if c.id in {of_first.id for of_first in reports[0].metrics.classes})
    same = one[["crop_id", "class_id"]].merge(other[["crop_id", "class_id"]])
    crops = sorted(same.loc[same["class_id"].isin(common), "crop_id"])
    if not crops:
        return None
    tables: tuple[pd.DataFrame, pd.DataFrame] = tuple(t.set_index("crop_id").loc[crops].reset_index() for t in (one, other))  # type: ignore[assignment]
    thresholds = tuple({t.id: t.value for t in report.metrics.thresholds} for report in reports)
    found: dict[str, Any] = compare_scores(tables, common, thresholds)
    return OnCrops(len(crops), len(set(tables[0]["location"]) - {""}), found["macro_f1"], found["macro_f1_interval"], found["classes"])


def _compare_in_production(first: ProductionScore | None, second: ProductionScore | None) -> tuple[InProduction, ...]:
    if first is None or second is None:
        return ()
    known = {c.id: c for c in first.classes}
    pairs = [(known[c.id], c) for c in second.classes if c.id in known]
    return tuple(
        InProduction(
            a.id,
            (a.recall, b.recall),
            (a.recall_interval, b.recall_interval),
            (a.precision, b.precision),
            (a.precision_interval, b.precision_interval),
        )
        for a, b in pairs
    )
