"""The server process: its listening socket, and its end together with the parent process."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from animl_pipeline.core.errors import SettingsError


def listen_on(host: str, port: int, remedy: str) -> socket.socket:
    """A bound and listening TCP socket. Port 0 takes any free port.

    Raises:
        SettingsError: the port is in use or not allowed; ``remedy`` says what to do.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it, each answer on a kept connection waits 40 ms
    try:
        listening.bind((host, port))
        listening.listen(1024)  # at once, so that no client is refused while the model loads
    except (OSError, OverflowError) as e:
        listening.close()
        raise SettingsError(f"cannot listen on port {port} of {host} ({getattr(e, 'strerror', None) or e}); {remedy}", code="port_in_use") from e
    return listening


def watch_parent(parent: int, on_end: Callable[[], None], every_s: float = 0.25) -> None:
    """Call ``on_end`` from another thread when this process's parent is no longer the process ``parent``.

    The parent passes its own process id, so that its end before this call is noticed, too.
    """

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(every_s)
        on_end()

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
