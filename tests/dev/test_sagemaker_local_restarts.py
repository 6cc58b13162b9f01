"""The local SageMaker as a process: killed, started again, without its parent, beside another one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.dev.sagemaker_local import Addresses, local_sagemaker
from tests.support.endpoint_process import wait_until
from tests.support.sagemaker_cloud import Cloud, archive_of


def programs_below(pid: int) -> list[int]:
    """The endpoint programs that a server started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            command = (folder / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == pid and b"animl_pipeline.serve" in command:
            found.append(int(folder.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def server(state: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "animl_pipeline.dev.sagemaker_local", "--state", str(state), "--s3", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def addresses_of(process: subprocess.Popen[bytes]) -> Addresses:
    assert process.stdout is not None
    return Addresses.model_validate_json(process.stdout.readline())


def closed(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end and close the pipes."""
    process.communicate(timeout=30)


def test_killed_and_started_again_it_brings_its_endpoints_back_and_leaves_no_orphans(tmp_path: Path) -> None:
    process = server(tmp_path / "state")
    try:
        cloud = Cloud(addresses_of(process))
        name = cloud.endpoint(cloud.config(archive_of(tmp_path, "red", "green", "blue")))
        before, programs = cloud.ask(name), programs_below(process.pid)
        assert len(programs) == 1
    finally:
        process.kill()
        closed(process)
    wait_until(lambda: not any(alive(p) for p in programs), "its programs have ended")
    with local_sagemaker(tmp_path / "state") as addresses:
        again = Cloud(addresses)
        assert again.sm.describe_endpoint(EndpointName=name)["EndpointStatus"] == "InService"
        assert again.ask(name) == before


def test_a_program_that_died_is_started_again_at_the_next_request(tmp_path: Path) -> None:
    process = server(tmp_path / "state")
    try:
        cloud = Cloud(addresses_of(process))
        name = cloud.endpoint(cloud.config(archive_of(tmp_path, "red", "green", "blue")))
        (program,) = programs_below(process.pid)
        os.kill(program, signal.SIGKILL)
        wait_until(lambda: not alive(program), "the program is dead")
        assert set(cloud.ask(name)) == {"red", "green", "blue"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not any(alive(p) for p in programs_below(process.pid))
    finally:
        process.kill()
        closed(process)


def test_it_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    parent = f"""
import os, subprocess, sys
command = [sys.executable, "-m", "animl_pipeline.dev.sagemaker_local", "--state", {str(tmp_path / "state")!r}, "--with-parent", str(os.getpid())]
child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {{"AWS_DEFAULT_REGION": "us-east-1"}})
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert alive(child)
        process.kill()
    wait_until(lambda: not alive(child), "the server has ended")


def test_a_port_or_a_folder_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ReleaseError, match=f"port {port} of 127.0.0.1"), local_sagemaker(tmp_path / "a", port=port):
            pass
    with (
        local_sagemaker(tmp_path / "b"),
        pytest.raises(ReleaseError, match="another local SageMaker uses the folder"),
        local_sagemaker(tmp_path / "b"),
    ):
        pass
