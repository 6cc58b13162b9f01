"""Prefect's server behind a password, which answers requests of its own web pages and of programs only."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from animl_pipeline.cli.prefect_server_password import check_password, is_published
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.refuse_foreign_requests import LOOPBACK, Allowed, AsgiApp, host_of, origin_of, refuse_foreign

if TYPE_CHECKING:
    import uvicorn

OPEN_PATHS = frozenset({"/api/health", "/api/ready"})
"""What a load balancer asks without a password and by the machine's number. The answers say nothing but yes."""


def serve_prefect(host: str, port: int) -> None:
    """Run Prefect's server and UI until a signal.

    Prefect's own settings say the rest: ``PREFECT_SERVER_API_AUTH_STRING`` the password, ``PREFECT_SERVER_UI_API_URL`` the address at
    which browsers see it, ``PREFECT_API_URL`` the address at which workers do. Requests that name another host are refused.

    Raises:
        SettingsError: there is no password, or everybody knows it; or the port is in use.
    """
    from prefect.settings import PREFECT_SERVER_API_PORT, PREFECT_SERVER_CORS_ALLOWED_ORIGINS, get_current_settings, temporary_settings

    from animl_pipeline.serve.listen_and_watch_parent import listen_on

    with temporary_settings({PREFECT_SERVER_API_PORT: port}):
        settings = get_current_settings()
        auth, database = settings.server.api.auth_string, settings.server.database.connection_url
        check_password(auth.get_secret_value() if auth else "", "PREFECT_SERVER_API_AUTH_STRING")
        _check_database_password(database.get_secret_value() if database else "")
        page = settings.server.ui.api_url or ""
        allowed = allowed_requests(port, page, settings.api.url or page, settings.server.api.cors_allowed_origins)
        listening = listen_on(host, port, "give another with --port")
        with temporary_settings({PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ",".join(sorted(allowed.origins))}):
            from prefect.server.api.server import create_app

            for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn handles them while it runs and raises them again when it ends
                signal.signal(number, lambda *_: sys.exit(0))
            guarded_server(create_app(final=True), allowed, settings.server.logging_level.lower()).run(sockets=[listening])


def allowed_requests(port: int, page: str, api: str, further_origins: str) -> Allowed:
    """The hosts and origins of a server.

    ``page``: the address of the API for its web pages. ``api``: the address of the API for workers and commands. ``further_origins``:
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS; "*", Prefect's default, adds none.
    """
    origins = {origin_of(page), *(origin for origin in further_origins.split(",") if origin != "*")}
    if host_of(page) in LOOPBACK:
        origins |= {f"http://127.0.0.1:{port}", f"http://localhost:{port}"}
    return Allowed(LOOPBACK | {host_of(page), host_of(api)} - {""}, frozenset(origins - {""}), OPEN_PATHS)


def guarded_server(app: AsgiApp, allowed: Allowed, log_level: str, port: int = 0) -> uvicorn.Server:
    """A web server for Prefect's application that refuses foreign requests. Without sockets of its own it listens on 127.0.0.1."""
    import uvicorn
    from prefect.settings import get_current_settings

    api = get_current_settings().server.api
    return uvicorn.Server(
        uvicorn.Config(
            refuse_foreign(app, allowed),
            host="127.0.0.1",
            port=port,
            log_level=log_level,
            lifespan="on",
            timeout_keep_alive=api.keepalive_timeout,
            ws_ping_interval=api.websocket_ping_interval,
            ws_ping_timeout=api.websocket_ping_timeout,
        )
    )


def _check_database_password(address: str) -> None:
    from sqlalchemy.engine import make_url

    if address and is_published(str(make_url(address).password or "")):
        raise SettingsError(
            "PREFECT_API_DATABASE_CONNECTION_URL: expected a secret, found the database password of an example, which everybody knows; "
            "choose one of your own (POSTGRES_PASSWORD), letters and digits only",
            code="example_password",
        )
