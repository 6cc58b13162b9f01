"""The first lines of ``animl-pipeline``, for the third of a second in which the rest is loaded."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line; a Ctrl-C before it has its own answer to one ends the process, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from animl_pipeline.cli.main import main as run

    run()
