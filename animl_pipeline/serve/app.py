"""The web application: /ping, /invocations, one line of log a request. The classifier is loaded while /ping says 503."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from animl_pipeline.errors import PictureError, PipelineError
from animl_pipeline.serve.journal import note
from animl_pipeline.serve.question import read_question
from animl_pipeline.serve.refusal import Refusal

if TYPE_CHECKING:
    from animl_pipeline.classifier import Classifier

Handler = Callable[[Request], Awaitable[Response]]

MAX_BODY = 6_000_000
"""SageMaker's own limit is 6 MB for a real-time endpoint, 4 MB for a serverless one."""
DRAIN = 32_000_000
"""So much of a body that is too large is still read (and thrown away), so that the client gets to read its 413."""


class Program:
    """The classifier, once it is loaded, and the threads that ask it: one a core."""

    def __init__(self, model: Path, max_body: int = MAX_BODY, failed: Callable[[], None] | None = None) -> None:
        self.model = model
        self.max_body = max_body
        self.classifier: Classifier | None = None
        self.fault: str | None = None
        self._failed = failed
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="answer")

    def begin(self) -> None:
        """Load in a worker thread."""
        self._threads.submit(self._load)

    def end(self) -> None:
        """Finish what is under way."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def answer(self, content_type: str, body: bytes) -> dict[str, float]:
        """Every class's probability; decoding and inference run in a worker thread.

        Raises:
            Refusal: what is wrong with the request, or 503 while loading.
        """
        self.ready()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, content_type, body)

    def ready(self) -> Classifier:
        """The loaded classifier.

        Raises:
            Refusal: 503, it is not there yet or cannot be loaded.
        """
        if self.classifier is None:
            raise Refusal(503, self.fault or "the model is still loading; ask again in a moment")
        return self.classifier

    def _load(self) -> None:
        started = time.monotonic()
        try:
            from animl_pipeline.classifier import Classifier

            self.classifier = Classifier.load(self.model, threads=1)
            note("loaded", model=self.classifier.card.model, version=self.classifier.card.version, ms=_ms_since(started))
        except PipelineError as e:
            self._give_up(str(e))
        except Exception as e:  # noqa: BLE001 - a thread that dies in silence would leave /ping at 503 for ever
            self._give_up(f"the model cannot be loaded: {type(e).__name__}: {e}")

    def _give_up(self, fault: str) -> None:
        self.fault = fault
        note("not loaded", level=logging.ERROR, error=fault)
        if self._failed is not None:
            self._failed()

    def _answer(self, content_type: str, body: bytes) -> dict[str, float]:
        from animl_pipeline.pixels import open_picture

        question = read_question(content_type, body)
        try:
            picture = open_picture(question.picture)
        except PictureError as e:
            raise Refusal(400, f"image: {e}") from e
        except Exception as e:  # decoders fall over hostile bytes in their own ways (struct.error, KeyError, …); the bytes are at fault
            raise Refusal(400, f"image: not a picture that decodes: {type(e).__name__}") from e
        try:
            return self.ready().answer(picture, question.box)
        except PictureError as e:
            raise Refusal(400, f"bbox: {e}") from e


def create_app(program: Program) -> Starlette:
    """The application over a program; ``program`` begins to load when the application starts."""

    async def ping(_: Request) -> Response:
        program.ready()
        return Response(status_code=200)

    async def invocations(request: Request) -> Response:
        body = await _read_body(request, program.max_body)
        return JSONResponse(await program.answer(request.headers.get("content-type", ""), body))

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        program.begin()
        yield
        await asyncio.to_thread(program.end)

    routes = [Route("/ping", _spoken(ping), methods=["GET"]), Route("/invocations", _spoken(invocations), methods=["POST"])]
    return Starlette(routes=routes, lifespan=life, exception_handlers={HTTPException: _refused_route})


def _spoken(handler: Handler) -> Handler:
    """``handler`` with a request id, a line of log, and every fault as one status with one reason."""

    async def spoken(request: Request) -> Response:
        started = time.monotonic()
        request_id = request.headers.get("x-amzn-sagemaker-inference-id", uuid.uuid4().hex)[:64]
        error: str | None = None
        try:
            response = await handler(request)
        except Refusal as e:
            error = e.reason
            response = JSONResponse({"error": e.reason}, e.status)
        except ClientDisconnect:
            error = "the client went away"
            response = Response(status_code=499)
        except Exception:
            logging.getLogger("animl_pipeline.serve").exception("fault", extra={"facts": {"request": request_id}})
            error = "internal fault"
            response = JSONResponse({"error": f"an internal fault; the log says more under request {request_id}"}, 500)
        if request.url.path != "/ping" or response.status_code not in {200, 503}:
            note("request", request=request_id, path=request.url.path, status=response.status_code, ms=_ms_since(started), error=error)
        return response

    return spoken


async def _refused_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"error": f"{request.method} {request.url.path[:80]} is not spoken here; GET /ping and POST /invocations are"}, status)


async def _read_body(request: Request, limit: int) -> bytes:
    """The body, never more of it in memory than ``limit`` bytes."""
    body, seen = bytearray(), 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen <= limit:
            body += chunk
        else:
            body.clear()
        if seen > max(DRAIN, limit):
            break
    if seen > limit:
        raise Refusal(413, f"a body of more than {limit:,} bytes; shrink the picture")
    return bytes(body)


def _ms_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)
