"""The HTTP application: ``POST /`` is the control API (JSON 1.1), ``POST /endpoints/{name}/invocations`` the runtime API."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from animl_pipeline.dev.sagemaker_local.api_validation import ApiError
from animl_pipeline.dev.sagemaker_local.control_api import MAX_PAYLOAD, ControlApi

log = logging.getLogger(__name__)

JSON = "application/x-amz-json-1.1"


def create_app(control: ControlApi) -> Starlette:
    """The web application that calls ``control``."""
    threads = ThreadPoolExecutor(64, thread_name_prefix="request")

    async def control_api(request: Request) -> Response:
        service, _, operation = request.headers.get("x-amz-target", "").partition(".")
        body = await request.body()
        if service.startswith("ServiceQuotas"):
            return Response(json.dumps(control.quotas()), media_type=JSON, headers=_request_id())
        return await asyncio.get_running_loop().run_in_executor(threads, _control, control, operation, body)

    async def runtime_api(request: Request) -> Response:
        body = await _at_most(request, MAX_PAYLOAD + 1)
        kept = {k: v for k, v in request.headers.items() if k in {"content-type", "accept", "x-amzn-sagemaker-inference-id"}}
        return await asyncio.get_running_loop().run_in_executor(threads, _runtime, control, request.path_params["name"], body, kept)

    async def faults(request: Request) -> Response:
        """Not part of AWS: read or change the injected faults."""
        try:
            now = control.faults.change(await request.json()) if request.method == "POST" else control.faults.now()
        except (ApiError, ValueError, TypeError) as e:
            return Response(json.dumps({"message": str(e)}), 400, media_type="application/json")
        return Response(now.model_dump_json(), media_type="application/json")

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        threads.shutdown(wait=False, cancel_futures=True)

    routes = [
        Route("/", control_api, methods=["POST"]),
        Route("/endpoints/{name}/invocations", runtime_api, methods=["POST"]),
        Route("/local/faults", faults, methods=["GET", "POST"]),
    ]
    return Starlette(routes=routes, lifespan=life)


def _control(control: ControlApi, operation: str, body: bytes) -> Response:
    try:
        answer = control.handle(operation, json.loads(body or b"{}"))
    except ValueError as e:
        return _error_response(ApiError("SerializationException", f"the body is not JSON: {e}"))
    except ApiError as e:
        return _error_response(e)
    except Exception as e:
        log.exception("%s failed", operation)
        return _error_response(ApiError("InternalFailure", f"{type(e).__name__}: {e}", 500))
    return Response(json.dumps(answer), media_type=JSON, headers=_request_id())


def _runtime(control: ControlApi, name: str, body: bytes, headers: dict[str, str]) -> Response:
    try:
        reply = control.invoke(name, body, headers)
    except ApiError as e:
        return _error_response(e)
    more = {"x-amzn-invoked-production-variant": "AllTraffic"} | _request_id()
    return Response(reply.body, media_type=reply.content_type, headers=more)


def _error_response(error: ApiError) -> Response:
    body = {"__type": error.code, "message": error.message, "Message": error.message, **error.more}
    return Response(json.dumps(body), error.status, media_type=JSON, headers={"x-amzn-errortype": error.code} | _request_id())


async def _at_most(request: Request, limit: int) -> bytes:
    """The first ``limit`` bytes of the body. All of it is read, so that the client can read the error answer."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk[: limit - len(body)]
    return bytes(body)


def _request_id() -> dict[str, str]:
    return {"x-amzn-requestid": str(uuid.uuid4())}
