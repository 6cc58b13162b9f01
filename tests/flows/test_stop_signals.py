"""Commands that are stopped by a signal end soon, with one line, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.stop_signals import STOPPED
from tests.support.command_line import COMMAND
from tests.support.endpoint_process import wait_until
from tests.support.paths import ROOT
from tests.support.tiny_project import write_project
from tests.support.web_server import served


def start_training(plan: Path, folder: Path) -> subprocess.Popen[str]:
    variables = {"ANIML_STORE": str(folder / "store"), "ANIML_TIMEOUT_S": "300", "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": ""}
    line, environment = [*COMMAND, "retrain", str(plan)], os.environ | variables
    return subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def children(pid: int) -> list[int]:
    """A process's children."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def all_ended(pids: list[int], within_s: float) -> bool:
    """Whether all processes end in time."""
    deadline = time.monotonic() + within_s
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_a_stopped_training_ends_soon_with_one_line_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    plan = write_project(tmp_path, locations=2, each=1)
    with served({}) as site:
        site.gate_after = 0  # the step images waits without end
        plan.write_text(plan.read_text(encoding="utf-8").replace(str(tmp_path / "images"), site.address), encoding="utf-8")
        with start_training(plan, tmp_path) as command:
            try:
                assert site.at_gate.wait(120)
                servers = children(command.pid)
                assert servers, "Prefect's server is a child of the command"
                command.send_signal(number)
                _, errors = command.communicate(timeout=20)
            finally:
                command.kill()
                site.gate.set()
    if number == signal.SIGKILL:
        assert command.returncode == -signal.SIGKILL
    else:
        assert command.returncode == 128 + number
        assert errors.endswith(STOPPED)
        assert "Traceback" not in errors
    assert all_ended(servers, within_s=30)


def test_a_terminals_ctrl_c_while_prefects_server_starts_is_one_line(tmp_path: Path) -> None:
    plan = write_project(tmp_path, locations=1, each=1)
    with start_training(plan, tmp_path) as command:
        try:
            wait_until(lambda: command.poll() is not None or children(command.pid), "Prefect's server is started", seconds=120)
            servers = children(command.pid)
            os.killpg(command.pid, signal.SIGINT)  # a terminal sends it to the whole foreground group
            _, errors = command.communicate(timeout=20)
        finally:
            command.kill()
    assert command.returncode == 128 + signal.SIGINT
    assert errors == STOPPED
    assert servers
    assert all_ended(servers, within_s=30)


FLOW_IN_A_THREAD = """
import signal
import threading

from flows.stop_signals import handle_signals, prepare_run

handle_signals()
before = signal.getsignal(signal.SIGTERM)
errors = []
threading.excepthook = errors.append
thread = threading.Thread(target=prepare_run)
thread.start()
thread.join()
assert not errors, errors
assert signal.getsignal(signal.SIGTERM) is before
"""


def test_a_flow_begins_in_any_thread_of_a_process_that_handles_signals() -> None:
    subprocess.run([sys.executable, "-c", FLOW_IN_A_THREAD], cwd=ROOT, check=True, timeout=60)
