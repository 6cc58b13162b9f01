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
    """Serve Prefect's API on a port of this machine."""
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="on"))
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
