"""A real Prefect server with all its services, for the tests that need one: events, automations, suspended runs."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
import requests
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.worker import EventsWorker
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.utilities.asyncutils import run_coro_as_sync

from tests.support.endpoint_process import wait_until

FAST_SERVER = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "0.2",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
}
"""Settings that make a server start sooner and check more often."""
PREFECT_TEST = [
    pytest.mark.prefect,
    pytest.mark.usefixtures("prefect"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""The marks of a module whose tests run flows on the server."""


@contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """The address of a server that keeps everything in a folder. It ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | FAST_SERVER | {"PREFECT_HOME": str(folder / "prefect")}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            wait_until(lambda: server.poll() is not None or _answers(address), "Prefect's server answers", seconds=180)
            assert server.poll() is None, (folder / "server.log").read_text()
            yield address
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


@contextmanager
def use_server(address: str) -> Iterator[None]:
    """Let this process's flows and clients use the server, without heartbeats, whose threads take a second to end."""
    with temporary_settings({PREFECT_API_URL: address, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def send_remaining_events() -> None:
    """Send what this process's threads still have for the server, before it ends."""

    async def drain() -> None:
        for left in (APILogWorker.instance().drain(), EventsWorker.drain_all()):
            if inspect.isawaitable(left):
                await left

    run_coro_as_sync(drain())


def call_server(method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The server's answer to a request, as JSON. A request that meets a busy database (503) is sent again, as every client of Prefect does.

    Raises:
        PrefectHTTPStatusError: the server refuses the request.
    """
    with get_client(sync_client=True) as client:
        return client.request(method, path, json=body).json()  # type: ignore[arg-type]  # paths and methods are literals there


def read_run(run: FlowRun) -> FlowRun:
    """A run as the server knows it now."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run.id)


def start_run(flow: Flow[..., Any], deployment: str, parameters: dict[str, Any]) -> FlowRun:
    """A run of a deployment, carried out here as a worker's process does, until it ends or waits for a person."""
    made = flow.to_deployment(name=deployment).apply()
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(cast("UUID", made), parameters=parameters)
    return resume_run(flow, run)


def resume_run(flow: Flow[..., Any], run: FlowRun) -> FlowRun:
    """A scheduled run, carried out here. Returns it as it is then."""
    now = read_run(run)
    with contextlib.suppress(Pause):  # the process of a suspended run ends with it
        run_flow(flow, flow_run=now, parameters=now.parameters, return_type="state")
    return read_run(run)


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.RequestException:
        return False
