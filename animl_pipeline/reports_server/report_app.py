"""The pages of the report server, which files of the store it gives out, and who may ask.

Nothing can be changed through it. Of the store it gives out only the pages that steps made, and the tables, images and scores beside
them, each checked against its manifest.
"""

from __future__ import annotations

import base64
import hmac
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PipelineError, StoreError
from animl_pipeline.core.refuse_foreign_requests import Allowed, AsgiApp, Message, Scope, refuse_foreign
from animl_pipeline.core.report_formats import CONTENT_SECURITY_POLICY, page_environment
from animl_pipeline.reports_server.catalogue import PLOT_HEIGHT, PLOT_WIDTH, Catalogue, read_catalogue, read_manifest
from animl_pipeline.reports_server.compare_versions import compare_versions
from animl_pipeline.storage.open_existing_or_temporary_store import open_existing_store
from animl_pipeline.storage.store import Store

HEALTH = "/health"
"""The one path that needs no password; it says only that the server runs."""
KINDS = {".html": "text/html", ".csv": "text/csv", ".png": "image/png", ".json": "application/json"}
"""Which files are given out, by the end of their names, and as what."""
KEEP_S = 15.0
"""How long a catalogue is used before the store is read again."""
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def report_app(settings: Settings, auth: str, allowed: Allowed) -> AsgiApp:
    """The server's ASGI application.

    ``settings``: where the store is. If there is none yet, the index says so, and it is looked for again at the next request. ``auth``:
    ``user:password`` that every request must bring.
    """
    pages = _Pages(settings)
    routes = [
        Route("/", pages.index),
        Route("/compare", pages.compare),
        Route("/steps/{step}/{key}/{name}", pages.file),
        Route(HEALTH, lambda _: PlainTextResponse("ok")),
    ]
    app = Starlette(routes=routes, exception_handlers={PipelineError: _explain})
    return _add_headers(refuse_foreign(_require_password(app, auth), allowed))


class _Pages:
    """The pages of one store."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._templates = page_environment(Path(__file__).parent)
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._known, self._read_at = Catalogue(), -KEEP_S

    def index(self, request: Request) -> Response:
        """All models and other pages."""
        return self._page("index.html.j2", catalogue=self._catalogue(), width=PLOT_WIDTH, height=PLOT_HEIGHT)

    def compare(self, request: Request) -> Response:
        """Two versions, named by their packages in the query as ``a`` and ``b``."""
        catalogue = self._catalogue()
        reports = [catalogue.find(request.query_params.get(name, "")) for name in ("a", "b")]
        if reports[0] is None or reports[1] is None:
            raise HTTPException(404, "expected two versions of the index, found another one")
        return self._page("compare.html.j2", found=compare_versions(reports[0], reports[1], self._open_store()))

    def file(self, request: Request) -> Response:
        """A file of a step that made a page."""
        step, key, name = (request.path_params[part] for part in ("step", "key", "name"))
        kind = KINDS.get(PurePosixPath(name).suffix)
        valid = step.replace("_", "").isalpha() and len(key) == 64 and not set(key) - set("0123456789abcdef")
        store = self._open_store() if valid and kind else None
        manifest = read_manifest(store, step, key) if store else None
        if store is None or manifest is None or name not in manifest.files or not any(n.endswith(".html") for n in manifest.files):
            raise HTTPException(404, "there is no such report; it may have been deleted from the store")
        data = store.path(manifest.artifact(cached=True), name).read_bytes()
        download = {"Content-Disposition": f'attachment; filename="{step}-{key[:12]}-{name}"'} if kind == "text/csv" else {}
        return Response(data, media_type=kind, headers=download)

    def _page(self, template: str, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(template).render(values, store=str(self._settings.store)))

    def _open_store(self) -> Store:
        if self._store is None:
            self._store = open_existing_store(self._settings)
        return self._store

    def _catalogue(self) -> Catalogue:
        with self._lock:
            if time.monotonic() - self._read_at >= KEEP_S:
                try:
                    self._known = read_catalogue(self._open_store())
                except StoreError as e:
                    if e.code != "no_store":
                        raise
                else:
                    self._read_at = time.monotonic()
            return self._known


def _explain(request: Request, error: Exception) -> Response:
    """An error of the store: one line that says what to do."""
    return PlainTextResponse(str(error), status_code=500)


def _require_password(app: AsgiApp, auth: str) -> AsgiApp:
    """An application that answers 401 to requests without the password."""
    expected = b"Basic " + base64.b64encode(auth.encode())

    async def guarded(scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] != "http" or scope["path"] == HEALTH or hmac.compare_digest(given, expected):
            await app(scope, receive, send)
            return
        challenge = {"WWW-Authenticate": 'Basic realm="animl-pipeline reports", charset="UTF-8"'}
        await PlainTextResponse("the reports need the user and the password of the Prefect server", 401, challenge)(scope, receive, send)

    return guarded


def _add_headers(app: AsgiApp) -> AsgiApp:
    """An application whose every answer has ``HEADERS``."""
    ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def with_headers(scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *ours]
            await send(message)

        await app(scope, receive, add)

    return with_headers
