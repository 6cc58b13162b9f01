"""A proxy on this machine that holds requests of one kind until several have arrived, so that they reach the server together."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

WAIT_S = 60
"""If fewer requests arrive within this time, those that wait go on."""


class _Proxy:
    """Passes all bytes on to the server and back."""

    def __init__(self, server: str, kind: bytes, count: int) -> None:
        self.server = urlsplit(server)
        self.kind = kind
        self.barrier = threading.Barrier(count)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = server.replace(str(self.server.port), str(self.listener.getsockname()[1]), 1)

    def accept(self) -> None:
        """Accept connections until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.server.port or 80))
                threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, requests: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if requests and self.kind in data.split(b"\r\n", 1)[0]:
                    with contextlib.suppress(threading.BrokenBarrierError):  # after the first time, or after WAIT_S, the barrier is open
                        self.barrier.wait(WAIT_S)
                        self.barrier.abort()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def request_barrier(server: str, kind: bytes, count: int) -> Iterator[str]:
    """The URL of a proxy before ``server`` that holds requests whose first line contains ``kind`` until there are ``count``."""
    proxy = _Proxy(server, kind, count)
    threading.Thread(target=proxy.accept, daemon=True).start()
    try:
        yield proxy.url
    finally:
        proxy.barrier.abort()
        proxy.listener.shutdown(socket.SHUT_RDWR)
        proxy.listener.close()
