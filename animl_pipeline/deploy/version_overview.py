"""The versions of a model in the words and figures that a person compares: trained when, judged how, released when and by whom."""

from __future__ import annotations

from typing import NamedTuple

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.evaluation_results import Interval, Report
from animl_pipeline.deploy.release_history import History, records_of_model
from animl_pipeline.deploy.trained_versions import read_latest_report, trained_versions
from animl_pipeline.storage.store import Store

VERDICTS = {"promote": "promote", "hold": "hold", "need_more_data": "need more data", None: "none"}


class VersionRow(NamedTuple):
    """One version of a model. ``package`` is the digest of its package; "released" is about its latest release."""

    version: str
    package: str
    trained_at: str
    changes: tuple[str, ...]
    verdict: str
    macro_f1: float
    production_f1: float | None
    production_f1_interval: Interval | None
    false_alarms_per_1000_empty: float | None
    released_at: str
    released_by: str
    serves: bool
    next_release: bool


class VersionOverview(NamedTuple):
    """All versions of a model, the oldest first, with the report of each; its releases; and why there may be others ("" if not)."""

    rows: tuple[VersionRow, ...]
    reports: tuple[Report, ...]
    releases: History
    problem: str

    def evaluations(self) -> tuple[Artifact, ...]:
        """The evaluation of each version."""
        return tuple(report.evaluation for report in self.reports)


def overview_of_versions(model: str, store: Store) -> VersionOverview:
    """What the store knows of a model's versions."""
    try:
        latest = read_latest_report(model, store).package.digest
    except EvaluationError:
        latest = ""
    records, problem = records_of_model(model, store)
    done = [r for r in records if r.state == "done" and r.package is not None]
    released = {r.package.digest: r for r in done if r.package is not None}
    serving = {r.base_name: r.package.digest for r in done if r.package is not None}
    rows, trained = [], trained_versions(model, store)
    for one in trained:
        report, digest = one.report, one.report.package.digest
        production, release = report.metrics.production, released.get(digest)
        rows.append(
            VersionRow(
                version=report.version,
                package=digest,
                trained_at=one.trained_at,
                changes=one.changes,
                verdict=VERDICTS[report.verdict],
                macro_f1=report.metrics.macro_f1,
                production_f1=production.macro_f1() if production else None,
                production_f1_interval=production.macro_f1_interval if production else None,
                false_alarms_per_1000_empty=production.false_alarms_per_1000_empty if production else None,
                released_at=(release.ended_at or release.begun_at) if release else "",
                released_by=release.approval.by if release and release.approval else "",
                serves=digest in serving.values(),
                next_release=digest == latest,
            )
        )
    return VersionOverview(tuple(rows), tuple(one.report for one in trained), records, problem)
