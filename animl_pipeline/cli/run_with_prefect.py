"""Run a flow from a command: on the Prefect server of the settings, or on one that runs only while the command runs.

``python -m animl_pipeline.cli.run_with_prefect PORT`` is that server. It ends when its standard input ends: with the command, however
that ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from animl_pipeline.cli import console
from animl_pipeline.cli.options import Debug
from animl_pipeline.cli.prefect_connection import api_hint, server_address, unreachable_message
from animl_pipeline.cli.prefect_server_password import new_password
from animl_pipeline.cli.prefect_up import child_output, wait_for_server
from animl_pipeline.core.errors import SettingsError, redact_url

TRIES = 5
"""How often a request is repeated (for about a minute): an embedded server that has died does not come back, unlike a team's."""
GRACE_S = 5.0
"""Seconds that the server gets to finish."""


def run_flow(flow: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A flow's result. Without a Prefect server in the settings, an embedded one runs for as long as this command.

    Raises:
        SettingsError: Prefect's server is not where its settings say, or does not start.
    """
    address = server_address()
    try:
        with console.show_progress(debug=Debug.on), embedded_server() if address is None else nullcontext():
            return flow(*arguments, **options)
    except RuntimeError as e:
        if "Failed to reach API" not in str(e):  # Prefect has no error of its own for this
            raise
        address = address or ""
        raise SettingsError(unreachable_message(redact_url(address), api_hint(address), e.__cause__ or e), code="server_unreachable") from e


@contextmanager
def embedded_server() -> Iterator[None]:
    """A Prefect server for the flows of this process, with a password that only this process knows.

    It ends with this process, not with the block, so that Prefect can send its last log lines. A terminal's Ctrl-C does not
    reach it.

    Raises:
        SettingsError: it does not start.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, password = f"http://127.0.0.1:{port}/api", new_password()
    server = subprocess.Popen(  # held by this frame, because the server ends when its stdin is closed
        [sys.executable, "-m", "animl_pipeline.cli.run_with_prefect", str(port)],
        stdin=subprocess.PIPE,
        stdout=child_output(),
        stderr=child_output(),
        env=os.environ | {"PREFECT_SERVER_API_AUTH_STRING": password, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ""},
        start_new_session=True,
    )
    if not wait_for_server(server, address):
        raise SettingsError("Prefect's embedded server did not start; check that PREFECT_HOME (~/.prefect) can be written", code="no_server")
    with temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: password, PREFECT_CLIENT_MAX_RETRIES: TRIES}):
        yield


def serve_prefect() -> None:
    """Serve Prefect's API on a port of this machine, to programs of this machine: no web page is answered."""
    from prefect.server.api.server import create_app

    from animl_pipeline.cli.prefect_server import guarded_server
    from animl_pipeline.core.refuse_foreign_requests import Allowed

    server = guarded_server(create_app(ephemeral=True, final=True), Allowed(), "error", port=int(sys.argv[1]))
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    server.run()


def _stop_at_end_of_input(server: object) -> None:
    while os.read(0, 1024):
        pass
    server.should_exit = True  # type: ignore[attr-defined]  # uvicorn is loaded in main
    time.sleep(GRACE_S)
    os._exit(0)


if __name__ == "__main__":
    serve_prefect()
