"""How a process ends before its time: at once, with one line, and with no child process left. All signal handlers are here.

The store is consistent at any moment, so nothing must be waited for. Prefect gets a few seconds to report the run's end to its
server; then the process exits, whatever its threads are doing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from animl_pipeline.integrations.sagemaker_training.job import stop_jobs

GRACE_S = 3.0
"""Seconds that context managers and Prefect get to finish."""

STOPPED = "animl-pipeline: stopped; finished work is kept, run the same command again to continue\n"
SHOW_CURSOR = "\x1b[?25h"

_received: int | None = None
"""The signal that this command received first."""


class Stopped(BaseException):
    """Raised in the main thread by Ctrl-C or SIGTERM. It is no KeyboardInterrupt, because Typer prints a line of its own for that."""


def handle_signals() -> None:
    """Let Ctrl-C and SIGTERM end a command: the first raises :class:`Stopped`, the second ends the process at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def is_stopping() -> bool:
    """Whether this command received a signal to stop."""
    return _received is not None


def exit_now() -> NoReturn:
    """End this process with the status that a shell expects after a signal. Prefect's embedded server ends with it, by its pipe."""
    if sys.stderr.isatty():
        os.write(2, SHOW_CURSOR.encode())
    stop_jobs()
    os._exit(128 + (_received or signal.SIGTERM))


def prepare_run() -> None:
    """What a flow does first.

    The steps' log lines at level INFO become lines of the run's log. In a command, SIGTERM is handled as before: Prefect takes
    the handler for itself when a flow begins, and would wait for the threads of running tasks. A flow that somebody's own thread
    calls leaves the handlers as they are: Python sets them in the main thread only, and Prefect, too, takes them only there.
    """
    steps = logging.getLogger("animl_pipeline")
    if steps.level == logging.NOTSET:
        steps.setLevel(logging.INFO)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _stop:
        handle_signals()


@contextmanager
def exit_on_cancel() -> Iterator[None]:
    """End a worker's process soon after its run was cancelled.

    Prefect raises TerminationSignal in the main thread and then waits for the threads of running tasks; a training would go on
    in one until the worker kills the process.
    """
    from prefect.exceptions import TerminationSignal

    try:
        yield
    except TerminationSignal:
        _exit_later()
        stop_jobs()
        raise


def _stop(number: int, _frame: object) -> None:
    global _received  # noqa: PLW0603 - signals belong to the process
    if _received is not None:
        exit_now()
    _received = number
    logging.disable(logging.CRITICAL)  # threads that still work have nothing more to say
    os.write(2, STOPPED.encode())
    _exit_later()
    raise Stopped


def _exit_later() -> None:
    timer = threading.Timer(GRACE_S, exit_now)
    timer.daemon = True
    timer.start()
