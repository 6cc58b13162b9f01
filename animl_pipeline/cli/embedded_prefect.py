"""A Prefect server that runs only while a command runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from animl_pipeline.cli.prefect_server_password import new_password
from animl_pipeline.cli.prefect_up import child_output, wait_for_server
from animl_pipeline.core.errors import SettingsError

TRIES = 5
"""How often a request is repeated (for about a minute): an embedded server that has died does not come back, unlike a team's."""


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
        [sys.executable, "-m", "animl_pipeline.cli.embedded_prefect_process", str(port)],
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
