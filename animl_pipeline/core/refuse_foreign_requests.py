"""Refuse HTTP requests that another web page or another host name brought to a server of ours, before any of its code runs.

A browser lets every page send requests to a server on the same machine. Its Origin header names the page. A page whose host name
was made to point to this machine (DNS rebinding) is of the server's own origin, but its Host header holds the foreign name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Names of this machine that no DNS server can give to another one."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Allowed(NamedTuple):
    """What requests may say of where they come from and go to.

    Attributes:
        hosts: host names, in lower case and without a port.
        origins: such as ``http://127.0.0.1:4200``; empty: no web page may send anything.
        open_paths: paths whose GET needs no known host, such as a load balancer's health check.
    """

    hosts: frozenset[str] = LOOPBACK
    origins: frozenset[str] = frozenset()
    open_paths: frozenset[str] = frozenset()


def host_of(address: str) -> str:
    """The host name of an address or of a Host header, in lower case and without a port; "" if it has none."""
    try:
        return (urlsplit(address if "://" in address else f"//{address}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def origin_of(address: str) -> str:
    """The origin of an address as a browser writes it, such as ``https://example.org``; "" if it is no address."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return ""
    if not parts.hostname or not parts.scheme:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" if port in {None, usual} else f"{parts.scheme}://{host}:{port}"


def refusal(method: str, path: str, headers: Iterable[tuple[str, str]], allowed: Allowed) -> str:
    """Why a request is refused; "" if it is not.

    ``method``: of HTTP; "GET" for the opening of a web socket. ``headers``: names in any case; a header that comes twice is refused where it
    matters.
    """
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    hosts, origins = found.get("host", []), found.get("origin", [])
    is_open = method == "GET" and path in allowed.open_paths
    if not is_open and (len(hosts) != 1 or host_of(hosts[0]) not in allowed.hosts):
        return "the Host header does not name this server"
    if origins:
        return "" if len(origins) == 1 and origins[0] in allowed.origins else "requests of other web pages are refused"
    if set(found.get("sec-fetch-site", [])) & {"cross-site", "same-site"} and not _is_navigation(method, found):
        return "requests of other web pages are refused"
    return ""


def _is_navigation(method: str, headers: dict[str, list[str]]) -> bool:
    """Whether a person followed a link to here: it shows a page and does nothing."""
    return method == "GET" and headers.get("sec-fetch-mode") == ["navigate"] and headers.get("sec-fetch-dest") == ["document"]


def refuse_foreign(app: AsgiApp, allowed: Allowed) -> AsgiApp:
    """An ASGI application that answers refused requests with 403 and gives all others to ``app``."""

    async def guarded(scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] not in {"http", "websocket"}:  # the application's start and end
            await app(scope, receive, send)
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        reason = refusal(scope.get("method", "GET"), scope["path"], headers, allowed)
        if not reason:
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the client gets a 403
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain; charset=utf-8")]})
            await send({"type": "http.response.body", "body": reason.encode()})

    return guarded
