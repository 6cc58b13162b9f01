"""`animl-pipeline versions PLAN`: what was trained, how it was judged, what was released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from animl_pipeline.cli import console
from animl_pipeline.cli.options import JsonOption, PlanArgument, StoreOption, open_plan, settings_with
from animl_pipeline.cli.tables import print_table
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store

if TYPE_CHECKING:
    from animl_pipeline.deploy.version_overview import VersionRow


def versions(plan: PlanArgument, as_json: JsonOption = False, store: StoreOption = None) -> None:
    """List the versions of PLAN's model: when each was trained, its verdict and scores, and whether it was released.

    A trial is a training whose run changed something of the plan. `release` and `predict` take the latest version that is no trial,
    unless they are given a --version.
    """
    from animl_pipeline.deploy.version_overview import overview_of_versions

    settings = settings_with(store)
    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    rows = overview_of_versions(checked.model, opened).rows
    if as_json:
        console.print_json([row._asdict() for row in rows])
        return
    if not rows:
        console.out.print(f"{checked.model}: no version yet; train one: animl-pipeline retrain {plan}")
        return
    _show(checked.model, rows)


def _show(model: str, rows: Sequence[VersionRow]) -> None:
    numbers = ("F1", "F1 in production", "false alarms")
    columns = ("version", "trained", "verdict", *numbers, "released", "what")
    cells = [
        (
            row.version, _day(row.trained_at), row.verdict, f"{row.macro_f1:.2f}", _rounded(row.production_f1, 2),
            _rounded(row.false_alarms_per_1000_empty, 0), _released(row), _what(row),
        )
        for row in rows
    ]  # fmt: skip
    print_table(f"Versions of {model}, the newest last", columns, cells, right=numbers, less_important=("false alarms", "F1 in production"))
    console.out.print(
        "F1: mean of the classes on test crops; in production: on sequences, with detector and thresholds; false alarms: of 1,000 empty"
    )


def _released(row: VersionRow) -> str:
    by = f" by {row.released_by}" if row.released_by else ""
    return f"{_day(row.released_at)}{by}{' (serves now)' if row.serves else ''}"


def _what(row: VersionRow) -> str:
    if row.changes:
        return f"trial: {', '.join(row.changes)}"
    return "the next release takes it" if row.next_release and not row.serves else ""


def _day(time: str) -> str:
    return time[:16].replace("T", " ")


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
