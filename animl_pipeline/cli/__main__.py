"""The entry point of ``animl-pipeline``."""

from __future__ import annotations

import ctypes
import signal

ARENA_MAX = -8
"""M_ARENA_MAX of glibc's malloc.h."""


def main() -> None:
    """Run the command line. While it is loading, a third of a second, Ctrl-C simply ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _use_one_malloc_arena()
    from animl_pipeline.cli.main import main as run

    run()


def _use_one_malloc_arena() -> None:
    """Let all threads use glibc's main heap, before any thread starts: training in a thread then needs 8 % less processor time.

    A worker's runs get the same from their environment (MALLOC_ARENA_MAX in deployments/prefect.yaml).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc only
        mallopt(ARENA_MAX, 1)


if __name__ == "__main__":
    main()
