"""How a command ends before its time: at once, with one line, and with nothing left running.

What is in the store is whole at any moment, so nothing must be waited for: Prefect gets a moment to tell its server, then the
process goes, whatever its threads are doing.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
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

from animl_pipeline.cli import console
from animl_pipeline.integrations.sagemaker_training.stop_jobs import stop_jobs

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
    console.err.show_cursor(show=True)
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
        console.err.print(LINE)
        _status = 128 + number
        patience = threading.Timer(GRACE_S, leave)
        patience.daemon = True
        patience.start()


def _stop(*_: object) -> None:
    global _raised  # noqa: PLW0603 - once a process
    if not _raised:
        _raised = True
        raise Stopped


def install_signal_handlers() -> None:
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
def cancel_on_stop() -> Iterator[None]:
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


ARENA_MAX = -8
"""M_ARENA_MAX of malloc.h."""

SELDOM = (20_000, 20, 50)
"""Python looks for garbage in cycles each time so many objects are new (700, 10, 10 by itself)."""


def share_one_heap() -> bool:
    """Have threads take memory from the main thread's heap, if none has begun yet; whether the C library lets us.

    A thread with a heap of its own gives large blocks back to the kernel at once and asks for them again, a batch after the
    other: a training in a thread took 8 % more CPU than in the main thread, and takes as much with one heap. A worker's runs
    have it from their environment (MALLOC_ARENA_MAX in deployments/prefect.yaml).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(ARENA_MAX, 1))


def collect_seldom() -> None:
    """Look for garbage in cycles less often.

    Prefect, pandas and torch load a million objects that stay for good, and Python would go through them a dozen times on the
    way: 0.8 of the 2.8 CPU s that loading them took.
    """
    gc.set_threshold(*SELDOM)


def keep_what_is_loaded() -> None:
    """Take what has been loaded so far for no garbage, also at the end, which comes 0.4 s earlier so.

    Not once torch is there: its bindings would then be called leaks when the process ends.
    """
    if "torch" not in sys.modules:
        gc.freeze()
