"""Connections to the endpoint: how many there are, and how long one may wait without a request.

A client that opens connections and sends nothing would otherwise hold a file descriptor for each of them, until /ping gets none.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_S = 20.0
"""Seconds for the headers of a request to arrive, from the beginning of the connection or from their first byte."""
MAX_CONNECTIONS = 1024
"""Connections at the same time, where the limit on descriptors allows that many."""
OTHER_DESCRIPTORS = 64
"""Descriptors that are not for connections: the program's files, pipes, and connections that are being accepted or closed."""
ACCEPTED_TOGETHER = 16
"""Connections that are accepted before the first of them is looked at."""


def max_connections() -> int:
    """How many connections the limit on descriptors allows, after this process's soft limit is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(2, min(MAX_CONNECTIONS, soft - OTHER_DESCRIPTORS))


class Connection(H11Protocol):
    """A connection that is closed if no request arrives, and that gives way to a new one where there are too many.

    Attributes:
        maximum: connections at the same time.
        headers_s: seconds for the headers of a request.
        silent: the connections that never had a request, oldest first.
    """

    maximum = MAX_CONNECTIONS
    headers_s = HEADERS_S
    silent: ClassVar[dict[Connection, None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close another connection if this is one too many, so that a new client always reaches /ping."""
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn's annotation is narrower than asyncio's
        self._began = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._expect_headers()
        self.silent[self] = None
        if len(self.connections) > self.maximum:
            self._close_another()

    def data_received(self, data: bytes) -> None:
        """Limit the time for headers of which only a part is there."""
        super().data_received(data)
        if self.cycle is not None:
            self.silent.pop(self, None)
        if self.has_request():
            self._forget_timer()
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer, too."""
        self.silent.pop(self, None)
        self._forget_timer()
        super().connection_lost(exc)

    def has_request(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_headers(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.headers_s, self.transport.abort)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_another(self) -> None:
        """Close the connection that is needed least: the oldest without a request, else one that waits for its next, or for its body."""
        least = next(iter(self.silent))
        if least is self:
            others = [c for c in self.connections if isinstance(c, Connection) and c is not self and not c.transport.is_closing()]
            least = min((c for c in others if not c.has_request() or c.cycle.more_body), key=lambda c: (c.has_request(), c._began), default=self)
        self.silent.pop(least, None)
        least.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server, which accepts few connections at a time while the system keeps many more waiting."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept, then lengthen the system's queue again, which uvicorn shortens to its own."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(MAX_CONNECTIONS)


def make_server(app: ASGIApp, connections: int, headers_s: float = HEADERS_S) -> Server:
    """A server for ``app`` with at most so many connections, whose requests must arrive in time."""
    protocol = type("LimitedConnection", (Connection,), {"maximum": connections, "headers_s": headers_s, "silent": {}})
    config = uvicorn.Config(
        app, loop="asyncio", http=protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        timeout_keep_alive=75, timeout_graceful_shutdown=60, backlog=ACCEPTED_TOGETHER,
    )  # fmt: skip
    return Server(config)
