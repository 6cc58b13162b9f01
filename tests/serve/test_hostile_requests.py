"""Slow and large images, clients that leave, and connections without a request do not keep the endpoint from its work."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from animl_pipeline.core.box_type import WHOLE_IMAGE, Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.image_structure import ALL_FORMATS
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.model_input import extract_crop
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.serve.crop_process import crop_in_process
from animl_pipeline.serve.http_connections import make_server
from animl_pipeline.serve.http_errors import CLIENT_CLOSED_REQUEST, RETRY_STATUSES, RequestError
from animl_pipeline.serve.limits import Deadline
from animl_pipeline.serve.listen_and_watch_parent import listen_on
from animl_pipeline.serve.model_worker import Answer, ModelWorker
from tests.conftest import colour_model, jpeg
from tests.support import hostile_images as hostile
from tests.support.endpoint_process import RunningEndpoint, endpoint_process, ping, post, wait_until

REFUSED = ("jpeg of exif segments", "png of chunks", "ppm of comments", "bmp of ends of lines", "tiff of tiles", "webp with a large canvas")
LIMIT = 200_000_000
BOXES = (WHOLE_IMAGE, Box.of([0.0, 0.0, 0.5, 0.25]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model(tmp_path_factory.mktemp("hostile") / "model")


@pytest.fixture(scope="module")
def live(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEndpoint]:
    with endpoint_process(model, tmp_path_factory.mktemp("hostile") / "log", "--formats", "jpeg,PNG,TIFF") as running:
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200")
        yield running


# -- images


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_image_is_refused_with_one_line(live: RunningEndpoint, what: str) -> None:
    answer = post(live.address, "image/jpeg", hostile.HOSTILE[what]())
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert "took more than" not in answer.json()["error"]  # it is refused by its bytes, not by the time it takes
    assert live.process.poll() is None


@pytest.mark.parametrize("make", [lambda: hostile.encoded("TIFF", 300, 200), lambda: hostile.jpeg_with_scans(3000, 3000, 60)], ids=["TIFF", "scans"])
def test_an_image_that_may_be_slow_gets_the_offline_answer(live: RunningEndpoint, make: Callable[[], bytes]) -> None:
    data = make()
    answer = post(live.address, None, data)
    assert answer.status_code == 200
    assert answer.json() == pytest.approx(Classifier.load(live.model).classify(open_image(data), WHOLE_IMAGE), abs=1e-6)


def test_an_image_of_a_format_that_the_endpoint_does_not_accept_is_refused(live: RunningEndpoint) -> None:
    answer = post(live.address, None, hostile.encoded("GIF", mode="P"))
    assert answer.status_code == 400
    assert "found GIF" in answer.json()["error"]


def test_unknown_formats_end_the_program() -> None:
    command = [sys.executable, "-m", "animl_pipeline.serve", "serve", "--port", "0"]
    done = subprocess.run(command, env=os.environ | {"ANIML_IMAGE_FORMATS": "JPEG,EPS"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ANIML_IMAGE_FORMATS" in done.stderr


def crops_of(data: bytes, deadline: Deadline, memory: int = LIMIT, seconds: int = 60, boxes: tuple[Box, ...] = BOXES) -> list[bytes]:
    crops = crop_in_process(data, boxes, ModelInput(size=32, margin=0.1), deadline, formats=ALL_FORMATS, memory=memory, seconds=seconds)
    with closing(crops):
        return [crop.tobytes() for crop in crops]


def test_a_process_gives_the_same_crops() -> None:
    data = hostile.encoded("WEBP", 300, 200)
    image = open_image(data)
    assert crops_of(data, Deadline(60)) == [extract_crop(image, box, ModelInput(size=32, margin=0.1)).tobytes() for box in BOXES]


def test_a_process_that_takes_too_long_or_too_much_memory_is_stopped() -> None:
    large = hostile.encoded("TIFF", 9_000, 9_000, "L", compression="tiff_adobe_deflate")
    with pytest.raises(RequestError) as greedy:
        crops_of(large, Deadline(60), memory=1_000_000)
    assert (greedy.value.status, "MemoryError" in greedy.value.reason) == (400, True)
    with pytest.raises(RequestError) as late:
        crops_of(hostile.jpeg_with_scans(6000, 6000, 80), Deadline(60), 10 * LIMIT, seconds=1)
    assert (late.value.status, "more than 1 s" in late.value.reason) == (400, True)
    with pytest.raises(RequestError) as overdue:
        crops_of(large, Deadline(0.05), 2 * LIMIT)
    assert overdue.value.status == 503
    left = Deadline(60)
    left.cancel()
    with pytest.raises(RequestError) as gone:
        crops_of(large, left, 2 * LIMIT)
    assert gone.value.status == CLIENT_CLOSED_REQUEST


def test_a_process_says_why_there_is_no_crop() -> None:
    for data in (b"not an image", hostile.encoded("TIFF")[:100]):
        with pytest.raises(RequestError) as refused:
            crops_of(data, Deadline(60))
        assert (refused.value.status, refused.value.reason.startswith("image: ")) == (400, True)
    with pytest.raises(RequestError) as strip:
        crops_of(hostile.flat_png(20_000, 1), Deadline(60))
    assert (strip.value.status, strip.value.reason.startswith("bbox: ")) == (400, True)


# -- clients that leave, and requests whose time is over


def many_boxes() -> bytes:
    """A request that takes a core several seconds."""
    image = base64.b64encode(hostile.encoded("JPEG", 7000, 7000, quality=5)).decode()
    return json.dumps({"image": image, "bboxes": [[0, 0, 1, 1]] * 100}).encode()


async def loaded(worker: ModelWorker) -> None:
    worker.start()
    while worker.classifier is None:
        await asyncio.sleep(0.01)


def with_worker(model: Path, use: Callable[[ModelWorker], Awaitable[Any]], **options: Any) -> Any:
    """What ``use`` returns for a worker with a loaded model."""

    async def run() -> Any:
        worker = ModelWorker(model, **options)
        try:
            await loaded(worker)
            return await use(worker)
        finally:
            worker.stop()

    return asyncio.run(run())


def test_requests_whose_client_is_gone_are_not_worked_on(model: Path) -> None:
    body = many_boxes()

    async def leave(worker: ModelWorker) -> tuple[list[Any], Answer]:
        leaving, staying = asyncio.Event(), asyncio.Event()
        gone = [asyncio.create_task(wait_for(leaving)) for _ in range(30)]
        answers = [asyncio.create_task(worker.answer("", body, g)) for g in gone]
        await asyncio.sleep(0)  # each is in the queue now
        leaving.set()
        stays = asyncio.create_task(wait_for(staying))
        ordinary = await worker.answer("", jpeg(), stays)
        stays.cancel()
        return await asyncio.gather(*answers, return_exceptions=True), ordinary

    refused, ordinary = with_worker(model, leave)
    statuses = [e.status for e in refused]
    assert set(statuses) <= {CLIENT_CLOSED_REQUEST, 429}  # 429 where more of them are slow at the same time than the endpoint takes
    assert CLIENT_CLOSED_REQUEST in statuses
    assert set(ordinary) == {"red", "green", "blue"}


async def wait_for(event: asyncio.Event) -> None:
    await event.wait()


def test_requests_whose_time_is_over_are_not_worked_on(model: Path) -> None:
    body = many_boxes()

    async def wait(worker: ModelWorker) -> list[Any]:
        stays = asyncio.create_task(wait_for(asyncio.Event()))
        found = await asyncio.gather(*(worker.answer("", body, stays) for _ in range(30)), return_exceptions=True)
        stays.cancel()
        return found

    refused = with_worker(model, wait, answer_s=0.5)
    statuses = {e.status for e in refused}
    assert statuses <= RETRY_STATUSES  # 429 where more of them are slow at the same time than the endpoint takes
    assert 503 in statuses
    assert all("Retry-After" in e.headers for e in refused)


# -- connections


@contextmanager
def answering(connections: int, headers_s: float) -> Iterator[int]:
    """The port of a server with a /ping in a thread."""

    async def pong(_: Request) -> Response:
        return Response()

    listening = listen_on("127.0.0.1", 0, "")
    server = make_server(Starlette(routes=[Route("/ping", pong)]), connections, headers_s)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        wait_until(lambda: server.started, "the server has started")
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def part_of_a_request(port: int) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=60)
    raw.sendall(b"POST /ping HTTP/1.1\r\nHost: a\r\n")
    return raw


def is_closed(raw: socket.socket) -> bool:
    """Wait for the end of a connection on which nothing is sent."""
    try:
        return raw.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_connection_without_a_request_is_closed() -> None:
    with answering(100, 0.3) as port, requests.Session() as session, ExitStack() as stack:
        assert session.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code == 200
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        half = stack.enter_context(part_of_a_request(port))
        second = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        second.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n")
        assert second.recv(12) == b"HTTP/1.1 200"
        second.sendall(b"GET /pi")
        second.recv(1000)
        assert is_closed(silent)
        assert is_closed(half)
        assert is_closed(second)
        assert session.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code == 200


def test_more_connections_than_the_maximum_leave_room_for_ping() -> None:
    with answering(20, 60) as port, ExitStack() as stack:
        kept = stack.enter_context(requests.Session())
        assert kept.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code == 200
        opened = [stack.enter_context(part_of_a_request(port)) for _ in range(100)]
        assert requests.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code == 200
        assert is_closed(opened[0])
        assert kept.get(f"http://127.0.0.1:{port}/ping", timeout=60).status_code == 200


def test_the_maximum_follows_the_limit_on_descriptors() -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2]))); "
        "from animl_pipeline.serve.http_connections import max_connections; print(max_connections())"
    )
    for soft, hard, expected in ((256, 256, 192), (100, 4096, 1024)):
        done = subprocess.run([sys.executable, "-c", code, str(soft), str(hard)], capture_output=True, check=True)
        assert int(done.stdout) == expected
