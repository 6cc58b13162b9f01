"""Run the endpoint program in its own process, and call it over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import requests

from tests.support.paths import ROOT


class RunningEndpoint(NamedTuple):
    """A running endpoint program."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path
    model: Path


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Call ``condition`` until its result is true, and return the result. ``what`` describes it in the error."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def logged_events(log: Path, event: str) -> list[dict[str, Any]]:
    """All complete log lines of one event."""
    lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
    return [line for line in lines if line["event"] == event]


def ping(address: str) -> int:
    """The status of /ping."""
    return requests.get(f"{address}/ping", timeout=30).status_code


def malloc_settings() -> dict[str, str]:
    """The malloc variables that the endpoint's Docker image sets."""
    return dict(re.findall(r"(MALLOC_\w+)=(\d+)", (ROOT / "docker/endpoint.Dockerfile").read_text(encoding="utf-8")))


@contextlib.contextmanager
def endpoint_process(model: Path, log: Path, *more: str, enter: Callable[[], None] | None = None) -> Iterator[RunningEndpoint]:
    """Start the program with a model folder, wait until it listens, and end it after the block. ``enter`` is called in its process first."""
    command = [sys.executable, "-m", "animl_pipeline.serve", "serve", "--model", str(model), "--host", "127.0.0.1", "--port", "0", *more]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | malloc_settings(), preexec_fn=enter)  # noqa: PLW1509
    try:
        wait_until(lambda: logged_events(log, "listening") or process.poll() is not None, "the program listens")
        port = logged_events(log, "listening")[0]["port"]
        yield RunningEndpoint(process, f"http://127.0.0.1:{port}", log, model)
    finally:
        process.kill()
        process.wait()


def post(address: str, content_type: str | None, body: bytes) -> requests.Response:
    """POST to /invocations with this content type, or with none."""
    headers = {"Content-Type": content_type} if content_type else {}
    return requests.post(f"{address}/invocations", data=body, headers=headers, timeout=60)
