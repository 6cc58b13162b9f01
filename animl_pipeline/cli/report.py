"""`animl-pipeline report PLAN` for one person, and `animl-pipeline report-server` for a team."""

from __future__ import annotations

import signal
import sys
import webbrowser
from typing import Annotated

import typer

from animl_pipeline.cli import console
from animl_pipeline.cli.options import PlanArgument, StoreOption, VersionOption, open_plan, settings_with
from animl_pipeline.cli.prefect_connection import server_password
from animl_pipeline.cli.prefect_server_password import check_password
from animl_pipeline.config.settings import Settings


def report(
    plan: PlanArgument,
    version: VersionOption = "",
    open_it: Annotated[bool, typer.Option("--open", help="open it in this machine's browser")] = False,
    store: StoreOption = None,
) -> None:
    """Print where the report of PLAN's latest version is on this machine, as a page for a browser.

    The report and the tables beside it are checked first. From an s3:// store they are copied to ANIML_CACHE.
    """
    from animl_pipeline.deploy.latest_report_and_training_start import read_report
    from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store

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
    """Run the report server until a signal. Raises SettingsError: there is no password, or everybody knows it; or the port is in use."""
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
