"""A Prefect server in a process of its own, which ends when its standard input ends: when the command that started it ends,
however that comes about. Run by ``python -m animl_pipeline.cli.embedded_prefect_process PORT``.
"""

from __future__ import annotations

import os
import sys
import threading
import time

GRACE_S = 5.0
"""Seconds that the server gets to finish."""


def main() -> None:
    """Serve Prefect's API on a port of this machine, to programs of this machine: no web page is answered."""
    from prefect.server.api.server import create_app

    from animl_pipeline.cli.prefect_server import guarded_server
    from animl_pipeline.core.refuse_foreign_requests import Allowed

    server = guarded_server(create_app(ephemeral=True, final=True), Allowed(), "error", port=int(sys.argv[1]))
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    server.run()


def _stop_at_end_of_input(server: object) -> None:
    while os.read(0, 1024):
        pass
    server.should_exit = True  # type: ignore[attr-defined]  # uvicorn is loaded in main
    time.sleep(GRACE_S)
    os._exit(0)


if __name__ == "__main__":
    main()
