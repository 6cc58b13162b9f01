"""How a command ends before its time: at once, with one line, and with nothing left running.

What is in the store is whole at any moment, so nothing must be waited for: Prefect gets a moment to tell its server, then the
process goes, whatever its threads are doing.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from animl_pipeline.training_job.stopping import stop_jobs
from flows import screen

GRACE_S = 3.0
"""How long contexts and Prefect may take to close."""

LINE = "animl-pipeline: stopped; what was made is kept, run the same command again to go on"

SERVER = b"prefect.server.api.server:create_app"
"""What stands in the command line of Prefect's embedded server."""

_listening = False
_status: int | None = None
_raised = False
_lifelines: dict[int, subprocess.Popen[bytes]] = {}


class Stopped(BaseException):
    """Ctrl-C or SIGTERM, in the main thread. No KeyboardInterrupt, which Typer would answer with a line of its own."""


def listen_for_stops() -> None:
    """From now on Ctrl-C and SIGTERM raise :class:`Stopped` once; the second one ends the process at once."""
    global _listening  # noqa: PLW0603 - signals are the process's
    if not _listening:
        _listening = True
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        threading.Thread(target=_end_when_told, args=(told,), name="ending", daemon=True).start()
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _stop)


@contextmanager
def children_spared() -> Iterator[None]:
    """Let processes that the main thread starts from now on, until :func:`take_charge`, not hear of a terminal's Ctrl-C.

    Prefect starts its embedded server as one, in our process group, and it would end with a traceback of its own beside our line.
    What a thread blocks its children have blocked. This process hears of it all the same, in the thread of
    :func:`listen_for_stops`; and the server by SIGTERM, from :func:`leave` or its lifeline.
    """
    if not _listening:
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def was_stopped() -> bool:
    """Whether this process was told to stop."""
    return _raised or _status is not None


def leave() -> NoReturn:
    """End this process, with the status that a shell expects after such a signal."""
    deadline = time.monotonic() + 1
    while _status is None and time.monotonic() < deadline:
        time.sleep(0.01)  # the main thread was told first; the line is on its way
    screen.err.show_cursor(show=True)
    for server in _servers_started():
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)
    stop_jobs()
    os._exit(_status or 128 + signal.SIGTERM)


def _end_when_told(told: int) -> None:
    """Say the line at the first signal and leave after ``GRACE_S``; leave at once at the second.

    In a thread of its own, since a signal may come to another thread than the main one, which then sleeps on in a lock, and
    since Prefect may have taken the handlers.
    """
    global _status  # noqa: PLW0603 - one ending a process
    begun = False
    while True:
        number = os.read(told, 1)[0]
        if number not in {signal.SIGINT, signal.SIGTERM}:
            continue
        if begun:
            leave()
        begun = True
        logging.disable(logging.CRITICAL)  # threads that are still at work have nothing more to say
        screen.err.print(LINE)
        _status = 128 + number
        patience = threading.Timer(GRACE_S, leave)
        patience.daemon = True
        patience.start()


def _stop(*_: object) -> None:
    global _raised  # noqa: PLW0603 - once a process
    if not _raised:
        _raised = True
        raise Stopped


def take_charge() -> None:
    """What a flow does first: see that Prefect's embedded server ends when this process does, also by kill -9.

    A command's flow also takes SIGTERM back, which Prefect has for itself when a flow begins. A worker's process shows the
    rooms' facts in the run's log, which a command shows by itself.
    """
    facts = logging.getLogger("animl_pipeline")
    if facts.level == logging.NOTSET:
        facts.setLevel(logging.INFO)
    if _listening:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # of children_spared
        listen_for_stops()
    server = _embedded_server()
    if server is not None and server.pid not in _lifelines:
        if not _lifelines:
            atexit.register(_cut_lifelines)
        _lifelines[server.pid] = _lifeline(server.pid)


@contextmanager
def gone_when_cancelled() -> Iterator[None]:
    """See that a worker's process ends soon after its run was cancelled, whatever its threads are doing.

    Prefect tells the main thread, and would then wait for the tasks' threads, which train on until the worker kills them all.
    """
    from prefect.exceptions import TerminationSignal

    try:
        yield
    except TerminationSignal:
        patience = threading.Timer(GRACE_S, os._exit, (128 + signal.SIGTERM,))
        patience.daemon = True
        patience.start()
        stop_jobs()
        raise


def _cut_lifelines() -> None:
    """At an ordinary end Prefect stops its server itself, after it has told it everything."""
    for lifeline in _lifelines.values():
        lifeline.kill()
        lifeline.communicate()


def _embedded_server() -> subprocess.Popen[bytes] | None:
    """Prefect's server, if this process has started one."""
    if "prefect.server.api.server" not in sys.modules:
        return None
    from prefect.server.api.server import SubprocessASGIServer

    return SubprocessASGIServer().server_process  # there is one a process


def _servers_started() -> set[int]:
    """The process ids of Prefect's servers that this process has started; of one that is being started Prefect does not know yet."""
    known = _embedded_server()
    found = {known.pid} if known is not None and known.poll() is None else set()
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # who has ended meanwhile
            pids = children.read_text().split()
            found |= {int(pid) for pid in pids if SERVER in Path(f"/proc/{pid}/cmdline").read_bytes()}
    return found


def _lifeline(pid: int) -> subprocess.Popen[bytes]:
    """A shell that ends a process at the end of a pipe that only we hold open."""
    command = ["/bin/sh", "-c", 'cat >/dev/null; kill "$1" 2>/dev/null', "lifeline", str(pid)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
