"""The endpoint program as a process of its own: started over a model, asked over HTTP, ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import requests


class Live(NamedTuple):
    """A running program."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path
    model: Path


def until(told: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Poll until something true comes back."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = told()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def logged(log: Path, event: str) -> list[dict[str, Any]]:
    """The log's whole lines of one event."""
    lines = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
    return [line for line in lines if line["event"] == event]


def ping(address: str) -> int:
    return requests.get(f"{address}/ping", timeout=5).status_code


@contextlib.contextmanager
def program(model: Path, log: Path, *more: str) -> Iterator[Live]:
    """The program over a model folder, started, listening; ended afterwards."""
    command = [sys.executable, "-m", "animl_pipeline.serve", "serve", "--model", str(model), "--host", "127.0.0.1", "--port", "0", *more]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(lambda: logged(log, "listening") or process.poll() is not None, "the program listens")
        port = logged(log, "listening")[0]["port"]
        yield Live(process, f"http://127.0.0.1:{port}", log, model)
    finally:
        process.kill()
        process.wait()


def post(address: str, content_type: str | None, body: bytes) -> requests.Response:
    """A POST with exactly this content type, or none."""
    headers = {"Content-Type": content_type} if content_type else {}
    return requests.post(f"{address}/invocations", data=body, headers=headers, timeout=30)
