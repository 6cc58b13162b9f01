"""The web application: /ping, /invocations and /openapi.json. Errors become JSON responses, and each request one log line."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from animl_pipeline.serve.http_errors import CLIENT_CLOSED_REQUEST, RequestError
from animl_pipeline.serve.json_logging import log_event, milliseconds_since
from animl_pipeline.serve.limits import Reservation
from animl_pipeline.serve.model_worker import ModelWorker

Handler = Callable[[Request], Awaitable[Response]]

MAX_DISCARDED = 32_000_000
"""Bytes of a refused body that are still read and discarded, so that the client receives the reason."""
READ_TIMEOUT_S = 60
"""Seconds for a body to arrive. SageMaker does not wait longer for an answer."""
OPENAPI_FILE = Path(__file__).with_name("openapi.json")


def create_app(worker: ModelWorker) -> Starlette:
    """The application. The worker starts to load its model when the application starts."""

    async def ping(_: Request) -> Response:
        worker.require_classifier()
        return Response(status_code=200)

    async def invocations(request: Request) -> Response:
        with worker.admission.reservation() as reservation:
            body = await _read_body(request, worker.max_body, reservation)
            gone = asyncio.create_task(_wait_for_disconnect(request))
            try:
                return JSONResponse(await worker.answer(request.headers.get("content-type", ""), body, gone))
            finally:
                gone.cancel()

    async def openapi(_: Request) -> Response:
        return Response(await asyncio.to_thread(OPENAPI_FILE.read_bytes), media_type="application/json")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    routes = [
        Route("/ping", _with_json_errors(ping), methods=["GET"]),
        Route("/invocations", _with_json_errors(invocations), methods=["POST"]),
        Route("/openapi.json", _with_json_errors(openapi), methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _unknown_route})


def _with_json_errors(handler: Handler) -> Handler:
    """``handler`` with a request id, one log line for each request, and errors as JSON responses."""

    async def handle(request: Request) -> Response:
        started = time.monotonic()
        request_id = request.headers.get("x-amzn-sagemaker-inference-id", uuid.uuid4().hex)[:64]
        error: str | None = None
        try:
            response = await handler(request)
        except RequestError as e:
            error, response = e.reason, JSONResponse({"error": e.reason}, e.status, e.headers)
        except ClientDisconnect:
            error, response = "the client disconnected", Response(status_code=CLIENT_CLOSED_REQUEST)
        except Exception:
            logging.getLogger("animl_pipeline.serve").exception("internal error", extra={"facts": {"request": request_id}})
            error = "internal error"
            response = JSONResponse({"error": f"internal error; see the log for request {request_id}"}, 500)
        if request.url.path != "/ping" or response.status_code not in {200, 503}:
            log_event("request", request=request_id, path=request.url.path, status=response.status_code, ms=milliseconds_since(started), error=error)
        return response

    return handle


async def _unknown_route(request: Request, error: Exception) -> Response:
    """The JSON response for a path or method that does not exist."""
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
    reason = f"{request.method} {request.url.path[:80]} does not exist; expected GET /ping or POST /invocations"
    return JSONResponse({"error": reason}, status, headers)


async def _wait_for_disconnect(request: Request) -> None:
    """Return when the client has disconnected. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request, max_bytes: int, reservation: Reservation) -> bytes:
    """The body. As soon as there is a reason to refuse it, the rest is discarded.

    Raises:
        RequestError: 408, 413 or 429.
    """
    error: RequestError | None = None
    chunks: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for chunk in request.stream():
                received += len(chunk)
                error = error or _reason_to_refuse(chunk, received, max_bytes, reservation)
                if error is None:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if received > max(MAX_DISCARDED, max_bytes):
                    break
    except TimeoutError as e:
        raise RequestError(408, f"the body did not arrive within {READ_TIMEOUT_S} s") from e
    if error is not None:
        raise error
    return b"".join(chunks)


def _reason_to_refuse(chunk: bytes, received: int, max_bytes: int, reservation: Reservation) -> RequestError | None:
    """Why a body is refused when this chunk arrives, None if it is not."""
    if received > max_bytes:
        return RequestError(413, f"the body has more than {max_bytes:,} bytes; shrink the image")
    try:
        reservation.add(len(chunk))
    except RequestError as e:
        return e
    return None
