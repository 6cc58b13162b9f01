"""A hostile web page in a real browser, on the machine on which `animl-pipeline up` runs: it cannot command the server."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.browser import chromium
from tests.support.team_server import free_port, start_up, stop
from tests.support.web_server import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="expected playwright (the dev extra), found none"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="expected a chromium (Debian's), found none"),
]
REBOUND = "rebound.example"
"""A host name of an attacker, whose DNS server says at last that it is this machine."""

ATTACK = """async ([api, how]) => {
  const body = JSON.stringify({name: "hostile"}), url = `${api}/flows/`;
  if (how === "socket") return await new Promise(done => {
    const socket = new WebSocket(`${api.replace("http", "ws")}/events/in`);
    socket.onopen = () => done("open");
    socket.onerror = () => done("refused");
  });
  if (how === "form") {
    const form = Object.assign(document.createElement("form"), {method: "POST", action: url, enctype: "text/plain"});
    form.append(Object.assign(document.createElement("input"), {name: '{"name": "hostile", "x": "', value: '"}'}));
    document.body.append(form);
    form.submit();
    return "sent";
  }
  const kinds = {
    cors: {method: "POST", body, headers: {"Content-Type": "application/json"}},
    simple: {method: "POST", body, mode: "no-cors"},
    read: {method: "GET"},
  };
  try {
    const answer = await fetch(how === "read" ? `${api}/admin/version` : url, kinds[how]);
    return answer.type === "opaque" ? "opaque" : String(answer.status);
  } catch (error) { return "refused"; }
}"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, tuple[str, str]]]:
    """The port of a running `animl-pipeline up`, and its user and password. Its processes' arguments and its output are searched."""
    folder = tmp_path_factory.mktemp("up")
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ANIML_", "AWS_"))}
    locations = {name: str(folder / name.lower()) for name in ("ANIML_STORE", "ANIML_DATA", "PREFECT_HOME")}
    port = free_port()
    process, password = start_up(folder, port, ours | locations)
    secret = password.partition(":")[2].encode()
    try:
        user, _, own = password.partition(":")
        yield port, (user, own)
        assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if secret in _content(p)]
        assert secret not in (folder / "up.log").read_bytes()
    finally:
        stop(process)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the process has ended
        return b""


def names(port: int, auth: tuple[str, str]) -> list[str]:
    """The flows that the server knows."""
    found: list[dict[str, Any]] = requests.post(f"http://127.0.0.1:{port}/api/flows/filter", json={}, auth=auth, timeout=60).json()
    return sorted(flow["name"] for flow in found)


@pytest.mark.parametrize(
    "page", ["http://127.0.0.1:{other}", "http://evil.localhost:{other}", f"http://{REBOUND}:{{port}}"], ids=["port", "name", "dns"]
)
def test_a_hostile_page_cannot_command_the_server_of_up(up: tuple[int, tuple[str, str]], page: str) -> None:
    port, auth = up
    before = names(port, auth)
    assert "retrain" in before
    with served({"": b"<!doctype html><title>nice pictures</title>"}) as site, chromium(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as browser:
        site.headers[""] = {"Content-Type": "text/html"}
        address = page.format(other=site.address.rpartition(":")[2], port=port)
        for how, expected in {"cors": "refused", "read": "refused", "socket": "refused", "simple": "opaque", "form": "sent"}.items():
            tab = browser.new_page()
            answer = tab.goto(f"{address}/")
            assert answer is not None
            assert answer.status == (403 if REBOUND in page else 200)
            api = f"http://{REBOUND if REBOUND in page else '127.0.0.1'}:{port}/api"
            found = tab.evaluate(ATTACK, [api, how])
            same_origin = {"cors": "403", "read": "403", "simple": "403"} if REBOUND in page else {}
            assert found == same_origin.get(how, expected), how
            tab.wait_for_load_state("networkidle")
            tab.close()
    assert names(port, auth) == before, json.dumps(before)
