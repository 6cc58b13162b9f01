"""`animl-pipeline report PLAN` for one person, `report-server` for a team, `versions PLAN`: what was trained, judged and released."""

from __future__ import annotations

import signal
import sys
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import JsonOption, PlanArgument, StoreOption, VersionOption, open_plan, settings_with
from animl_pipeline.cli.prefect_connection import server_password
from animl_pipeline.cli.prefect_server_password import check_password
from animl_pipeline.cli.tables import print_table
from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store

if TYPE_CHECKING:
    from animl_pipeline.deploy.version_overview import VersionRow


def report(
    plan: PlanArgument,
    version: VersionOption = "",
    open_it: Annotated[bool, typer.Option("--open", help="open it in this machine's browser")] = False,
    store: StoreOption = None,
) -> None:
    """Print where the report of PLAN's latest version is on this machine, as a page for a browser.

    The report and the tables beside it are checked first. From an s3:// store they are copied to ANIML_CACHE.
    """
    from animl_pipeline.deploy.trained_versions import read_report

    settings = settings_with(store)
    checked, opened = open_plan(plan, settings), open_existing_store(settings)
    evaluation = read_report(checked.model, version, opened).evaluation
    for name in opened.files(evaluation):
        if name.endswith(".csv"):  # the page has links to them
            opened.path(evaluation, name)
    page = opened.path(evaluation, "report.html").resolve()
    console.out.print(str(page), soft_wrap=True, markup=False, highlight=False)
    if open_it and not webbrowser.open(page.as_uri()):
        console.err.print("this machine has no browser; open the page above in one", markup=False)


def report_server(
    host: Annotated[str, typer.Option(help="address of this machine to listen on; 0.0.0.0 for all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="to listen on")] = 4201,
    store: StoreOption = None,
) -> None:
    """Serve the store's reports until Ctrl-C: an index of models and versions, each report, comparisons. Nothing can be changed there.

    People sign in with the user and password of the Prefect server (PREFECT_API_AUTH_STRING, user:password). Only requests for this
    machine and for the host of ANIML_REPORTS_URL are answered; other web pages are refused.
    """
    serve_reports(settings_with(store), host, port)


def serve_reports(settings: Settings, host: str, port: int) -> None:
    """Run the report server until a signal.

    Raises:
        SettingsError: there is no password, or everybody knows it; or the port is in use.
    """
    import uvicorn

    from animl_pipeline.core.refuse_foreign_requests import LOOPBACK, Allowed, host_of
    from animl_pipeline.reports_server.report_app import HEALTH, report_app
    from animl_pipeline.serve.listen_and_watch_parent import listen_on

    auth = check_password(server_password(), "PREFECT_API_AUTH_STRING")
    allowed = Allowed(LOOPBACK | {host_of(settings.reports_url)} - {""}, open_paths=frozenset({HEALTH}))
    listening = listen_on(host, port, "give another with --port")
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn handles them while it runs and raises them again when it ends
        signal.signal(number, lambda *_: sys.exit(0))
    config = uvicorn.Config(report_app(settings, auth, allowed), log_level="warning", lifespan="off", server_header=False, limit_concurrency=64)
    uvicorn.Server(config).run(sockets=[listening])


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
    _show_versions(checked.model, rows)


def _show_versions(model: str, rows: Sequence[VersionRow]) -> None:
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
