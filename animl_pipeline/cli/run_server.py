"""A Prefect server with all deployments and a worker, on this machine until Ctrl-C: what a team's set-up is, on one machine."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from animl_pipeline.cli import console
from animl_pipeline.cli.prefect_server import check_server
from animl_pipeline.config.settings import load_settings, remember_prefect
from animl_pipeline.core.errors import PlanError, SettingsError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

DEPLOYMENTS = Path("deployments")
POOL = "animl"
STARTS_WITHIN_S = 120
"""A new database takes Prefect's server 20 s, more on a busy machine."""


def run_here(port: int, *, local_sagemaker: Path | None) -> None:
    """Start server, deployments, automations and worker; they end with this process.

    Args:
        port: of the server, on this machine only.
        local_sagemaker: folder of a local SageMaker to start, too, which releases then go to; None: AWS.

    Raises:
        SettingsError: the deployments are not here, the port is taken, or Prefect refused something.
    """
    _check_here()
    address = f"http://127.0.0.1:{port}/api"
    with ExitStack() as stack:
        if local_sagemaker is not None:
            from animl_pipeline.cli.demo import on_this_machine

            stack.enter_context(on_this_machine(local_sagemaker, load_settings().models_bucket))
        remember_prefect(address, port)
        stack.enter_context(_server(address, port))
        deploy()
        console.out.print(f"Prefect's UI: http://127.0.0.1:{port}/deployments   (API: {address})")
        console.out.print("up until Ctrl-C; runs are worked off here")
        worker = stack.enter_context(_child("worker", "start", "--pool", POOL, "--type", "process"))
        worker.wait()


def deploy() -> None:
    """Put the work pool, the deployments and the automations on the server of PREFECT_API_URL; what is there already is renewed.

    Raises:
        SettingsError: the deployments are not here, or Prefect refused something; the message holds its last lines.
    """
    from flows.automations import put_automations

    _check_here()
    check_server()
    _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    _prefect("deploy", "--all", "--prefect-file", str(DEPLOYMENTS / "prefect.yaml"))
    put_automations(DEPLOYMENTS / "automations.yaml", load_settings().notify)


def _check_here() -> None:
    if not (DEPLOYMENTS / "prefect.yaml").exists():
        raise SettingsError(f"expected {DEPLOYMENTS}/prefect.yaml in {Path.cwd()}, found none; run this from the checkout")


@contextmanager
def _server(address: str, port: int) -> Iterator[None]:
    """Prefect's server, once it answers."""
    if _answers(address):
        raise SettingsError(f"expected the port {port} to be free, found a Prefect server there; stop it, or give another with --port")
    with _child("server", "start", "--host", "127.0.0.1", "--port", str(port)) as server:
        unready = retry_if_result(lambda ready: not ready)
        try:
            Retrying(retry=unready, stop=stop_after_delay(STARTS_WITHIN_S), wait=wait_fixed(0.25))(
                lambda: server.poll() is not None or _answers(address)
            )
        except RetryError as e:
            raise SettingsError(f"Prefect's server did not answer at {address} within {STARTS_WITHIN_S} s; run with --debug to see its log") from e
        if server.poll() is not None:
            raise SettingsError(f"Prefect's server ended at once; see that the port {port} is free (--port) and that PREFECT_HOME can be written")
        yield


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=2).ok
    except requests.RequestException:
        return False


@contextmanager
def _child(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A prefect command that runs while it is needed; it is told to stop then, and killed when it does not."""
    child = subprocess.Popen([sys.executable, "-m", "prefect", *arguments], stdin=subprocess.DEVNULL, stdout=_output())
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _output() -> int | None:
    return None if log.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL


def _prefect(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise SettingsError(f"`prefect {' '.join(arguments)}` failed: {said}")


def notify(plan: str, changes: Mapping[str, object], batch: str) -> None:
    """Tell the Prefect server that images were validated: the event ``animl.images.validated``.

    Whether the plan's file is right only the server's run can see; a plan that no training is deployed for is refused here.

    Raises:
        PlanError: what is told does not fit, or the server has no deployment ``retrain/<plan>``; the message lists those that it has.
        SettingsError: no server is set, or it does not take the event.
    """
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource

    from flows.watch import understood

    payload = {"plan": plan, "overrides": {k: v for k, v in changes.items() if v is not None}} | ({"batch": batch} if batch else {})
    event = Event(event="animl.images.validated", resource=Resource({"prefect.resource.id": f"animl.project.{Path(plan).stem}"}), payload=payload)
    check_server()
    with get_client(sync_client=True) as client:
        _check_deployed(plan, client)
        understood(payload)
        answer = client.request("POST", "/events", json=[event.model_dump(mode="json")])
    if not answer.is_success:
        raise SettingsError(f"the Prefect server at {urlsplit(str(answer.url)).netloc} did not take the event ({answer.status_code})")


def _check_deployed(plan: str, client: SyncPrefectClient) -> None:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName

    from flows.watch import deployed_as

    of_retrain, name = FlowFilter(name=FlowFilterName(any_=["retrain"])), deployed_as(plan)
    if client.read_deployments(flow_filter=of_retrain, deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name]))):
        return
    there = ", ".join(sorted(d.name for d in client.read_deployments(flow_filter=of_retrain))) or "no plan"
    raise PlanError(
        f"expected a plan that is deployed on the Prefect server, found {plan!r} (no deployment retrain/{name}); it has: {there}. "
        "Nothing was told to it"
    )
