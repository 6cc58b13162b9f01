"""`animl-pipeline versions PLAN`: what was trained, how it was judged, what was released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from animl_pipeline.cli import console
from animl_pipeline.cli.options import JsonOption, PlanArgument, StoreOption, open_plan, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config import Plan
from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.storage.existing_store import open_existing_store
from animl_pipeline.storage.store import Store

VERDICTS = {"promote": "promote", "hold": "hold", "need_more_data": "need more data", None: "none"}


class VersionRow(NamedTuple):
    """One version of a plan's model, in the words and figures that a person compares."""

    version: str
    trained_at: str
    changes: tuple[str, ...]
    verdict: str
    macro_f1: float
    production_f1: float | None
    false_alarms_per_1000_empty: float | None
    released_at: str
    serves: bool
    next_release: bool


def versions(plan: PlanArgument, as_json: JsonOption = False, store: StoreOption = None) -> None:
    """List the versions of PLAN's model: when each was trained, its verdict and scores, and whether it was released.

    A trial is a training whose run changed something of the plan. `release` and `predict` take the latest version that is no trial,
    unless they are given a --version.
    """
    settings = settings_with(store)
    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    rows = version_rows(checked, opened)
    if as_json:
        console.print_json([row._asdict() for row in rows])
        return
    if not rows:
        console.out.print(f"{checked.model}: no version yet; train one: animl-pipeline retrain {plan}")
        return
    _show(checked.model, rows)


def version_rows(plan: Plan, store: Store) -> list[VersionRow]:
    """The versions of a plan's model, the oldest first."""
    from animl_pipeline.deploy.latest_report_and_training_start import read_latest_report
    from animl_pipeline.deploy.release_history import records_of_model
    from animl_pipeline.deploy.trained_versions import trained_versions

    try:
        latest = read_latest_report(plan.model, store).package.digest
    except EvaluationError:
        latest = ""
    done = [r for r in records_of_model(plan.model, store).records if r.state == "done" and r.package is not None]
    released = {r.package.digest: r.ended_at or r.begun_at for r in done if r.package is not None}
    serving = {r.base_name: r.package.digest for r in done if r.package is not None}
    rows = []
    for trained in trained_versions(plan.model, store):
        report, digest = trained.report, trained.report.package.digest
        rows.append(
            VersionRow(
                version=report.version,
                trained_at=trained.trained_at,
                changes=trained.changes,
                verdict=VERDICTS[report.verdict],
                macro_f1=report.metrics.macro_f1,
                production_f1=mean_production_f1(report),
                false_alarms_per_1000_empty=report.metrics.production.false_alarms_per_1000_empty if report.metrics.production else None,
                released_at=released.get(digest, ""),
                serves=digest in serving.values(),
                next_release=digest == latest,
            )
        )
    return rows


def mean_production_f1(report: Report) -> float | None:
    """The mean over the classes that the test sequences show; None if production was not scored."""
    f1 = [c.f1 for c in report.metrics.production.classes if c.f1 is not None] if report.metrics.production else []
    return sum(f1) / len(f1) if f1 else None


def _show(model: str, rows: Sequence[VersionRow]) -> None:
    numbers = ("F1", "F1 in production", "false alarms")
    columns = ("version", "trained", "verdict", *numbers, "released", "what")
    cells = [
        (
            row.version, _day(row.trained_at), row.verdict, f"{row.macro_f1:.2f}", _rounded(row.production_f1, 2),
            _rounded(row.false_alarms_per_1000_empty, 0), f"{_day(row.released_at)}{' (serves now)' if row.serves else ''}", _what(row),
        )
        for row in rows
    ]  # fmt: skip
    print_table(f"Versions of {model}, the newest last", columns, cells, right=numbers, less_important=("false alarms", "F1 in production"))
    console.out.print(
        "F1: mean of the classes on test crops; in production: on sequences, with detector and thresholds; false alarms: of 1,000 empty"
    )


def _what(row: VersionRow) -> str:
    if row.changes:
        return f"trial: {', '.join(row.changes)}"
    return "the next release takes it" if row.next_release and not row.serves else ""


def _day(time: str) -> str:
    return time[:16].replace("T", " ")


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
