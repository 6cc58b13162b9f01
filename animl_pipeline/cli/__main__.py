"""The entry point of ``animl-pipeline``."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line. While it is loading, a third of a second, Ctrl-C simply ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from animl_pipeline.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
