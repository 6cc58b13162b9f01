"""The entry point of ``animl-pipeline``."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys

ARENA_MAX = -8
"""M_ARENA_MAX of glibc's malloc.h."""


def main() -> None:
    """Run the command line. While it is loading, a third of a second, Ctrl-C simply ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_standard_streams()
    _use_one_malloc_arena()
    from animl_pipeline.cli.main import main as run

    run()


def _open_standard_streams() -> None:
    """Open what the caller closed, and let no character end the command.

    A closed standard stream would be given to the next file that is opened, such as one of the store. A stream whose encoding lacks a
    character, such as cp1252, gets an escape for it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _use_one_malloc_arena() -> None:
    """Let all threads use glibc's main heap, before any thread starts: training in a thread then needs 8 % less processor time.

    A worker's runs get the same from their environment (MALLOC_ARENA_MAX in deployments/prefect.yaml).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc only
        mallopt(ARENA_MAX, 1)


if __name__ == "__main__":
    main()
