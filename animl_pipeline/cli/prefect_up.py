"""The command `animl-pipeline up`: a Prefect server, deployments, a worker and the reports on this machine, until Ctrl-C.

The server has a password, or every web page that a browser shows on this machine could have the worker do what it likes.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import requests
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from animl_pipeline.cli import console
from animl_pipeline.cli.prefect_connection import LOCAL_SERVER_DEFAULTS
from animl_pipeline.cli.prefect_deployments import deploy
from animl_pipeline.cli.prefect_server_password import check_password, kept_in_file, new_password, password_file
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError

log = logging.getLogger(__name__)

STARTS_WITHIN_S = 120
"""Prefect's server takes 20 s for a new database, and more on a busy machine."""


def run_up(port: int, reports_port: int, settings: Settings, local_sagemaker: Path | None) -> None:
    """Start a server with all deployments and automations, a worker, and the report server. They end with this process.

    ``settings``: the store and the data folder of the worker's runs. ``local_sagemaker``: folder of a local SageMaker to start, too, which
    releases then go to; None: AWS.

    Raises:
        SettingsError: the port is in use, or Prefect refused something.
    """
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

    address = f"http://127.0.0.1:{port}/api"
    ours = dict(LOCAL_SERVER_DEFAULTS | os.environ)
    chosen = ours.pop("PREFECT_SERVER_API_AUTH_STRING", "")
    password = check_password(chosen, "PREFECT_SERVER_API_AUTH_STRING") if chosen else new_password()
    environment = ours | {
        "PREFECT_API_URL": address,
        "PREFECT_SERVER_UI_API_URL": address,
        "PREFECT_API_AUTH_STRING": password,
        "ANIML_STORE": settings.store if settings.store.startswith("s3://") else str(Path(settings.store).expanduser().resolve()),
        "ANIML_DATA": str(settings.data.expanduser().resolve()),
        "ANIML_PLANS": str(settings.plans.expanduser().resolve()),
        "ANIML_REPORTS_URL": settings.reports_url or f"http://127.0.0.1:{reports_port}",
    }  # fmt: skip
    with ExitStack() as stack:
        if local_sagemaker is not None:
            from animl_pipeline.cli.sagemaker_local import run_local_aws

            environment |= stack.enter_context(run_local_aws(local_sagemaker, settings.models_bucket))
        file = password_file(PREFECT_HOME.value(), port)
        server = stack.enter_context(_server(address, port, environment, password))
        with temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: password}):
            deploy(environment)
        reports = stack.enter_context(_report_server(reports_port, environment))
        worker = stack.enter_context(_child(environment, "worker"))
        stack.callback(_terminate, worker, server, reports)  # first of all: a signal leaves this process a few seconds
        stack.enter_context(kept_in_file(password, file))
        console.out.print(f"Prefect's UI: http://127.0.0.1:{port}/deployments   (API: {address})")
        console.out.print(f"the reports: {environment['ANIML_REPORTS_URL']}   (user and password: what is before and after the colon below)")
        shown = f"{password}   (also in {file})" if console.out.is_terminal and not chosen else f"in {file}"  # a log must not hold it
        console.out.print(f"the password that it asks for: {shown}", soft_wrap=True, markup=False, highlight=False)
        console.out.print("running until Ctrl-C; a worker on this machine carries out the runs")
        worker.wait()


@contextmanager
def _server(address: str, port: int, environment: Mapping[str, str], password: str) -> Iterator[subprocess.Popen[bytes]]:
    """Prefect's server with its UI, once it answers. It gets none of the secrets that the worker needs."""
    if _answers(address):
        raise SettingsError(f"expected the port {port} to be free, found a Prefect server there; stop it, or give another with --port", code="port")
    own = {name: value for name, value in environment.items() if not name.startswith(("ANIML_", "AWS_"))}
    with _child(own | {"PREFECT_SERVER_API_AUTH_STRING": password}, "server", "--port", str(port)) as server:
        if not wait_for_server(server, address):
            raise SettingsError(
                f"Prefect's server did not start; check that the port {port} is free (--port) and that PREFECT_HOME can be written, "
                "or run with --debug to see its log",
                code="no_server",
            )
        yield server


@contextmanager
def _report_server(port: int, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The report server, once it answers. Of the worker's secrets it gets only those for an S3 store."""
    kept = ("ANIML_STORE", "ANIML_CACHE", "ANIML_REPORTS_URL")
    own = {name: value for name, value in environment.items() if name in kept or not name.startswith("ANIML_")}
    address = f"http://127.0.0.1:{port}"
    free = not _answers(address)
    with _child(own, "report-server", "--port", str(port)) as server:
        if not free or not wait_for_server(server, address):
            raise SettingsError(f"the report server did not start; check that the port {port} is free (--reports-port)", code="port")
        yield server


def wait_for_server(server: subprocess.Popen[bytes], address: str) -> bool:
    """Whether a server answers at its address in time."""
    wait = Retrying(retry=retry_if_result(lambda ready: not ready), stop=stop_after_delay(STARTS_WITHIN_S), wait=wait_fixed(0.1))
    try:
        wait(lambda: server.poll() is not None or _answers(address))
    except RetryError:
        return False
    return server.poll() is None


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=2).ok
    except requests.RequestException:
        return False


@contextmanager
def _child(environment: Mapping[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command of ours that runs while the block does. It is terminated then, and killed if that does not help."""
    child = subprocess.Popen(
        [sys.executable, "-m", "animl_pipeline.cli", *arguments], stdin=subprocess.DEVNULL, stdout=child_output(), env=environment
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _terminate(*children: subprocess.Popen[bytes]) -> None:
    """Ask all of them to end; each gets a second before the next is asked."""
    for child in children:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1)


def child_output() -> int | None:
    """Where the output of child processes goes: shown when debugging, otherwise nowhere."""
    return None if log.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL
