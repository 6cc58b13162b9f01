"""Which requests a server on this machine refuses: those that another web page or another host name brought."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from animl_pipeline.core.refuse_foreign_requests import Allowed, host_of, origin_of, refusal, refuse_foreign

OWN = "http://127.0.0.1:4200"
ALLOWED = Allowed(origins=frozenset({OWN}), open_paths=frozenset({"/api/health"}))
HOST = ("Host", "127.0.0.1:4200")
PAGE = ("Sec-Fetch-Site", "cross-site")


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", [("Host", "evil.example:4200")]),
        ("POST", [("Host", "127.0.0.1.evil.example")]),
        ("POST", [("Host", "127.0.0.1@evil.example")]),
        ("POST", [("Host", "[::1")]),
        ("POST", [("Host", "")]),
        ("POST", []),
        ("POST", [HOST, ("host", "evil.example")]),
        ("GET", [("Host", "evil.example")]),
        ("POST", [HOST, ("Origin", "https://evil.example")]),
        ("POST", [HOST, ("Origin", "null")]),
        ("POST", [HOST, ("Origin", "http://127.0.0.1:4201")]),
        ("POST", [HOST, ("Origin", "https://127.0.0.1:4200")]),
        ("POST", [HOST, ("Origin", OWN), ("origin", "https://evil.example")]),
        ("GET", [HOST, ("Origin", "https://evil.example")]),
        ("GET", [HOST, PAGE, ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image")]),
        ("GET", [HOST, ("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")]),
        ("POST", [HOST, PAGE, ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]),
    ],
)
def test_a_request_of_a_foreign_page_or_host_is_refused(method: str, headers: list[tuple[str, str]]) -> None:
    assert refusal(method, "/api/flows/", headers, ALLOWED)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/api/flows/", [HOST]),
        ("POST", "/api/flows/", [("host", "LOCALHOST:8080")]),
        ("POST", "/api/flows/", [("Host", "[::1]:4200")]),
        ("POST", "/api/flows/", [HOST, ("Origin", OWN), ("Sec-Fetch-Site", "same-origin")]),
        ("GET", "/runs", [HOST, PAGE, ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]),
        ("GET", "/api/health", [("Host", "10.0.0.7:4200")]),
    ],
)
def test_programs_the_own_pages_links_and_health_checks_are_answered(method: str, path: str, headers: list[tuple[str, str]]) -> None:
    assert refusal(method, path, headers, ALLOWED) == ""


def test_hosts_and_origins_are_compared_as_browsers_write_them() -> None:
    assert [host_of(a) for a in ("https://Prefect.Team.org/api", "prefect.team.org.:443", "http://[::1]:4200", "http://[")] == [
        "prefect.team.org", "prefect.team.org", "::1", ""
    ]  # fmt: skip
    assert [origin_of(a) for a in ("https://Prefect.Team.org:443/api", "http://h:4200/x", "http://[::1]:80/", "h:4200", "http://h:x")] == [
        "https://prefect.team.org", "http://h:4200", "http://[::1]", "", ""
    ]  # fmt: skip


@pytest.mark.parametrize(("kind", "first"), [("http", "http.response.start"), ("websocket", "websocket.close")])
def test_a_refused_request_never_reaches_the_application(kind: str, first: str) -> None:
    reached: list[str] = []
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def ask(scope: dict[str, Any]) -> None:
        await refuse_foreign(app, ALLOWED)(scope, receive, send)

    request = {"type": kind, "path": "/api/events/out", "headers": [(b"host", b"127.0.0.1:4200"), (b"origin", b"https://evil.example")]}
    asyncio.run(ask(request))
    assert (reached, sent[0]["type"], sent[0].get("status", 403)) == ([], first, 403)
    asyncio.run(ask(request | {"headers": [(b"host", b"127.0.0.1:4200")]}))
    asyncio.run(ask({"type": "lifespan"}))
    assert reached == [kind, "lifespan"]
