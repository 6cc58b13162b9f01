"""`animl-pipeline server`, killed and started again: a run that goes on meanwhile keeps its deployment's slot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.command_line import COMMAND
from tests.support.endpoint_process import wait_until
from tests.support.team_server import free_port, kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
AUTH = ("team", "the owl flies at night")


def answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/health", timeout=5).ok
    except requests.RequestException:
        return False


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """The address of a server, which is killed at the end."""
    address = f"http://127.0.0.1:{port}/api"
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    settings = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_API_AUTH_STRING": ":".join(AUTH), "PREFECT_SERVER_UI_ENABLED": "false"}
    with (folder / "server.log").open("ab") as log:
        command = [*COMMAND, "server", "--port", str(port)]
        process = subprocess.Popen(command, env=ours | settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until(lambda: answers(address) or process.poll() is not None, "the server answers", seconds=300)
        assert process.poll() is None, (folder / "server.log").read_text()
        yield address
    finally:
        kill(process)


def test_a_slot_that_a_run_holds_can_be_renewed_after_the_server_was_killed(tmp_path: Path) -> None:
    port, limits = free_port(), "v2/concurrency_limits"
    with server(tmp_path, port) as address:
        requests.post(f"{address}/{limits}/", json={"name": "one", "limit": 1}, auth=AUTH, timeout=60).raise_for_status()
        wanted = {"names": ["one"], "slots": 1, "mode": "concurrency", "lease_duration": 300}
        held = requests.post(f"{address}/{limits}/increment-with-lease", json=wanted, auth=AUTH, timeout=60)
        held.raise_for_status()
        lease = held.json()["lease_id"]
    with server(tmp_path, port) as address:
        renewed = requests.post(f"{address}/{limits}/leases/{lease}/renew", json={"lease_duration": 300}, auth=AUTH, timeout=60)
        assert renewed.ok, renewed.text
