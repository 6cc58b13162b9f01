"""The web application: /ping, /invocations, /openapi.json, and one line of log a request."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from animl_pipeline.serve.errors import Refusal
from animl_pipeline.serve.json_logging import milliseconds_since, note
from animl_pipeline.serve.limits import PathOrUrl
from animl_pipeline.serve.model_worker import Program
from animl_pipeline.serve.openapi import openapi

Handler = Callable[[Request], Awaitable[Response]]

DRAIN = 32_000_000
"""So much of a body that is refused is still read (and thrown away), so that the client gets to read why."""
READ_S = 60
"""Seconds that a body may take to arrive; SageMaker waits no longer for an answer."""


def create_app(program: Program) -> Starlette:
    """The application over a program; ``program`` begins to load when the application starts."""

    async def ping(_: Request) -> Response:
        program.ready()
        return Response(status_code=200)

    async def invocations(request: Request) -> Response:
        with program.door.location() as location:
            body = await _read_body(request, program.max_body, location)
            return JSONResponse(await program.answer(request.headers.get("content-type", ""), body))

    async def contract(_: Request) -> Response:
        return JSONResponse(openapi(program.classifier.card if program.classifier else None, program.max_body))

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        program.begin()
        yield
        await asyncio.to_thread(program.end)

    routes = [
        Route("/ping", _spoken(ping), methods=["GET"]),
        Route("/invocations", _spoken(invocations), methods=["POST"]),
        Route("/openapi.json", _spoken(contract), methods=["GET"]),
    ]
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
            response = JSONResponse({"error": e.reason}, e.status, e.headers)
        except ClientDisconnect:
            error = "the client went away"
            response = Response(status_code=499)
        except Exception:
            logging.getLogger("animl_pipeline.serve").exception("fault", extra={"facts": {"request": request_id}})
            error = "internal fault"
            response = JSONResponse({"error": f"an internal fault; the log says more under request {request_id}"}, 500)
        if request.url.path != "/ping" or response.status_code not in {200, 503}:
            note("request", request=request_id, path=request.url.path, status=response.status_code, ms=milliseconds_since(started), error=error)
        return response

    return spoken


async def _refused_route(request: Request, error: Exception) -> Response:
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
    return JSONResponse(
        {"error": f"{request.method} {request.url.path[:80]} is not spoken here; GET /ping and POST /invocations are"}, status, headers
    )


async def _read_body(request: Request, limit: int, location: PathOrUrl) -> bytes:
    """The body; once there is a reason to refuse it, the rest is read and thrown away.

    Raises:
        Refusal: 408, 413 or 429.
    """
    refused: Refusal | None = None
    chunks: list[bytes] = []
    seen = 0
    try:
        async with asyncio.timeout(READ_S):
            async for chunk in request.stream():
                seen += len(chunk)
                refused = refused or _reason_against(chunk, seen, limit, location)
                if refused is None:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if seen > max(DRAIN, limit):
                    break
    except TimeoutError as e:
        raise Refusal(408, f"the body did not arrive within {READ_S} s") from e
    if refused is not None:
        raise refused
    return b"".join(chunks)


def _reason_against(chunk: bytes, seen: int, limit: int, location: PathOrUrl) -> Refusal | None:
    """Why a body is refused at this chunk of it, if it is."""
    if seen > limit:
        return Refusal(413, f"a body of more than {limit:,} bytes; shrink the picture")
    try:
        if location.requests == 0:
            location.enter()
        location.hold(len(chunk))
    except Refusal as full:
        return full
    return None
