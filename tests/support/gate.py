"""A gate before a server of this machine: requests of one kind wait in it until so many of them are there, then all go on at once."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Gate:
    """A port that hands every byte on to the server and back."""

    def __init__(self, server: str, kind: bytes, together: int) -> None:
        self.there = urlsplit(server)
        self.kind = kind
        self.together = threading.Barrier(together)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = server.replace(str(self.there.port), str(self.listening.getsockname()[1]), 1)

    def let_in(self) -> None:
        """Take connections until the gate is closed."""
        with contextlib.suppress(OSError):
            while True:
                here, _ = self.listening.accept()
                there = socket.create_connection(("127.0.0.1", self.there.port or 80))
                threading.Thread(target=self._pass, args=(here, there, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(there, here, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, inwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if inwards and self.kind in data.split(b"\r\n", 1)[0]:
                    with contextlib.suppress(threading.BrokenBarrierError):  # open from the first time on, and where too few come
                        self.together.wait(60)
                        self.together.abort()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def gate_before(server: str, kind: bytes, together: int) -> Iterator[str]:
    """The address of a gate before ``server`` in which requests whose first line holds ``kind`` wait for one another."""
    gate = Gate(server, kind, together)
    threading.Thread(target=gate.let_in, daemon=True).start()
    try:
        yield gate.address
    finally:
        gate.together.abort()
        gate.listening.shutdown(socket.SHUT_RDWR)
        gate.listening.close()
