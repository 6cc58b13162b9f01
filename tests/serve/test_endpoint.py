"""The endpoint program as a real process: every valid and invalid form of a request, start and end."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.core.box_type import WHOLE_IMAGE, Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.serve.http_errors import RequestError
from animl_pipeline.serve.request_parsing import ClassifyRequest, parse_box, parse_request
from tests.conftest import colour_model, jpeg
from tests.support.endpoint_process import RunningEndpoint, endpoint_process, logged_events, ping, post, wait_until
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEndpoint]:
    folder = tmp_path_factory.mktemp("serve")
    with endpoint_process(colour_model(folder / "model"), folder / "log") as running:
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200")
        yield running


def half_and_half() -> bytes:
    """A JPEG, red on the left and blue on the right."""
    img = Image.new("RGB", (80, 60), (200, 20, 20))
    img.paste((20, 20, 200), (40, 0, 80, 60))
    buffer = io.BytesIO()
    img.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


LEFT = [0.0, 0.0, 1.0, 0.5]
B64 = base64.b64encode(half_and_half()).decode()
BODY = json.dumps({"image": B64, "bbox": LEFT}).encode()
BODY_WITH_TEXT_BOX = json.dumps({"image": B64, "bbox": str(LEFT)}).encode()


def multipart(*parts: tuple[str, bytes]) -> tuple[str, bytes]:
    body = b"".join(b'--xyz\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data) for name, data in parts)
    return "multipart/form-data; boundary=xyz", body + b"--xyz--\r\n"


FORMS: dict[str, tuple[str | None, bytes, list[float] | None]] = {
    "json": ("application/json", BODY, LEFT),
    "json with the box as text": ("application/json; charset=utf-8", BODY_WITH_TEXT_BOX, LEFT),
    "json without a box": ("application/json", json.dumps({"image": B64}).encode(), None),
    "json without a content type": (None, BODY, LEFT),
    "json as octet-stream, as the JavaScript SDK sends it": ("application/octet-stream", BODY, LEFT),
    "json as the body of multipart": ("multipart/form-data", BODY_WITH_TEXT_BOX, LEFT),
    "json as a part": (*multipart(("data", BODY)), LEFT),
    "parts": (*multipart(("image", half_and_half()), ("bbox", b"[0, 0, 1, 0.5]")), LEFT),
    "parts in base64": (*multipart(("bbox", b"[0, 0, 1, 0.5]"), ("image", B64.encode())), LEFT),
    "an image": ("image/jpeg", half_and_half(), None),
    "an image as octet-stream": ("application/octet-stream", half_and_half(), None),
    "an image without a content type": (None, half_and_half(), None),
    "json with both kinds of box, one of them null": ("application/json", json.dumps({"image": B64, "bbox": LEFT, "bboxes": None}).encode(), LEFT),
    "base64 in lines": ("application/json", json.dumps({"image": base64.encodebytes(half_and_half()).decode(), "bbox": LEFT}).encode(), LEFT),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_request_gets_the_offline_answer(live: RunningEndpoint, form: str) -> None:
    content_type, body, box = FORMS[form]
    expected = Classifier.load(live.model).classify(open_image(half_and_half()), Box.of(box) if box else WHOLE_IMAGE)
    answer = post(live.address, content_type, body)
    assert answer.status_code == 200
    assert answer.json() == pytest.approx(expected, abs=1e-6)
    assert set(answer.json()) == {"red", "green", "blue"}
    if box:
        assert answer.json()["red"] > 0.5 > answer.json()["blue"]


def json_body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def png_of(width: int, height: int) -> bytes:
    """The beginning of a PNG with this size in its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + struct.pack(">I4s", 0, b"IDAT")


def strip() -> bytes:
    """An image 20,000 pixels wide and 1 high."""
    buffer = io.BytesIO()
    Image.new("RGB", (20_000, 1)).save(buffer, "PNG")
    return buffer.getvalue()


INVALID: dict[str, tuple[int, str, str | None, bytes]] = {
    "no body": (400, "body is empty", "application/json", b""),
    "not JSON": (400, "not JSON", "application/json", b"{nonsense"),
    "JSON that is not an object": (400, "not an object", "application/json", b"[1, 2]"),
    "brackets without end": (400, "not JSON", "application/json", b"[" * 4_000),
    "too many brackets": (400, "5,000 brackets", "application/json", b'{"a": [' + b"{}," * 400_000 + b"{}]}"),
    "a box of half a surrogate pair": (400, "four numbers", "application/json", json_body(image=B64, bbox='"\ud800"')),
    "boxes of half a surrogate pair": (400, "1 to 100 boxes", "application/json", json_body(image=B64, bboxes='"\ud800"')),
    "no image": (400, "no image", "application/json", json_body(bbox=LEFT)),
    "an image that is a number": (400, "no image", "application/json", json_body(image=5)),
    "an image that is not base64": (400, "not base64", "application/json", json_body(image="%%%")),
    "base64 that is not an image": (400, "unknown image format", "application/json", json_body(image=base64.b64encode(b"hello").decode())),
    "a truncated image": (400, "image", "image/jpeg", jpeg()[:400]),
    "a decompression bomb": (400, "15000 x 10000", "image/png", png_of(15_000, 10_000)),
    "a strip whose square would fill the memory": (400, "image", "image/png", strip()),
    "three numbers": (400, "four numbers", "application/json", json_body(image=B64, bbox=[0, 0, 1])),
    "a box of words": (400, "four numbers", "application/json", json_body(image=B64, bbox=["a", 0, 1, 1])),
    "a box of no numbers": (400, "four numbers", None, json_body(image=B64, bbox=[float("nan"), 0, 1, 1])),
    "a box outside": (400, "outside the image", "application/json", json_body(image=B64, bbox=[0, 1.1, 1, 1.5])),
    "a box in pixels": (400, "outside the image", "application/json", json_body(image=B64, bbox=[10, 10, 300, 200])),
    "an empty box": (400, "ymin < ymax", "application/json", json_body(image=B64, bbox=[0.5, 0, 0.5, 1])),
    "a box that is not JSON": (400, "not JSON", "application/json", json_body(image=B64, bbox="(0, 0, 1, 1)")),
    "both kinds of box": (400, "both bbox and bboxes", "application/json", json_body(image=B64, bbox=LEFT, bboxes=[LEFT])),
    "no boxes": (400, "1 to 100 boxes", "application/json", json_body(image=B64, bboxes=[])),
    "too many boxes": (400, "found 101 boxes", "application/json", json_body(image=B64, bboxes=[LEFT] * 101)),
    "one box as boxes": (400, "each to be a list", "application/json", json_body(image=B64, bboxes=LEFT)),
    "an invalid box among boxes": (400, "four numbers", "application/json", json_body(image=B64, bboxes=[LEFT, [0, 1]])),
    "too many parts": (400, "16", *multipart(*[("a", b"1")] * 17)),
    "multipart without its boundary": (400, "boundary", "multipart/form-data", b"--xyz"),
    "multipart without an image": (400, "named image", *multipart(("a", b"1"), ("b", b"2"))),
    "multipart cut off": (
        400,
        "named image",
        "multipart/form-data; boundary=xyz",
        b'--xyz\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc',
    ),
    "another type": (415, "text/csv", "text/csv", b"1,2"),
    "too large": (413, "6,000,000", "image/jpeg", b"x" * 6_000_001),
}


@pytest.mark.parametrize("what", INVALID)
def test_an_invalid_request_gets_a_status_and_a_reason_and_does_no_harm(live: RunningEndpoint, what: str) -> None:
    status, reason, content_type, body = INVALID[what]
    answer = post(live.address, content_type, body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert reason in answer.json()["error"]
    assert "Traceback" not in answer.text
    assert post(live.address, None, BODY).status_code == 200


@pytest.mark.parametrize("as_text", [False, True], ids=["list", "text"])
def test_several_boxes_get_the_same_answers_as_one_by_one_in_order(live: RunningEndpoint, as_text: bool) -> None:
    boxes = [LEFT, [0.0, 0.5, 1.0, 1.0], [0, 0, 1, 1]]
    answer = post(live.address, None, json_body(image=B64, bboxes=json.dumps(boxes) if as_text else boxes))
    assert answer.json() == [post(live.address, None, json_body(image=B64, bbox=box)).json() for box in boxes]
    by_parts = post(live.address, *multipart(("image", half_and_half()), ("bboxes", json.dumps(boxes[:1]).encode())))
    assert by_parts.json() == answer.json()[:1]


def test_unknown_paths_and_methods_get_json_errors(live: RunningEndpoint) -> None:
    assert requests.get(f"{live.address}/", timeout=5).json()["error"].startswith("GET / does not exist")
    wrong = requests.get(f"{live.address}/invocations", timeout=5)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_the_log_is_json_lines_without_images(live: RunningEndpoint) -> None:
    headers = {"X-Amzn-SageMaker-Inference-Id": "me-17"}
    requests.post(f"{live.address}/invocations", data=BODY, headers=headers, timeout=5)
    found = wait_until(lambda: [r for r in logged_events(live.log, "request") if r["request"] == "me-17"], "the request is in the log")
    assert (found[0]["status"], found[0]["path"]) == (200, "/invocations")
    assert found[0]["ms"] > 0
    text = live.log.read_text()
    assert B64[:40] not in text
    assert all(line.startswith("{") for line in text.splitlines())


def test_twenty_simultaneous_requests_get_equal_answers(live: RunningEndpoint) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: post(live.address, None, BODY).json(), range(60)))
    assert all(a == answers[0] for a in answers)


def test_it_answers_503_while_loading(tmp_path: Path) -> None:
    model = colour_model(tmp_path / "model")
    card = (model / "card.json").read_bytes()
    (model / "card.json").unlink()
    os.mkfifo(model / "card.json")  # reading blocks until we write, so the program keeps loading
    with endpoint_process(model, tmp_path / "log") as running:
        assert ping(running.address) == 503
        answer = post(running.address, None, BODY)
        assert (answer.status_code, list(answer.json()), answer.headers["retry-after"]) == (503, ["error"], "1")
        (model / "card.json").write_bytes(card)
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200")
        assert post(running.address, None, BODY).status_code == 200


def test_it_ends_cleanly_after_sigterm(tmp_path: Path) -> None:
    with endpoint_process(colour_model(tmp_path / "model"), tmp_path / "log") as running:
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200")
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(15) == 0


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "animl_pipeline.serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | variables, check=False)


def test_without_a_model_it_ends_with_one_line(tmp_path: Path) -> None:
    done = run("serve", "--port", "0", "--host", "127.0.0.1", SM_MODEL_DIR=str(tmp_path / "none"))
    assert done.returncode == 1
    assert "expected a model card" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run("--model", str(tmp_path), "--host", "127.0.0.1", SAGEMAKER_BIND_TO_PORT=port)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    model, log = colour_model(tmp_path / "model"), tmp_path / "log"
    parent = f"""
import os, subprocess, sys, time
command = [sys.executable, "-m", "animl_pipeline.serve", "--model", {str(model)!r}, "--port", "0", "--with-parent", str(os.getpid())]
child = subprocess.Popen(command, stdout=open({str(log)!r}, "wb"))
print(child.pid, flush=True)
child.wait()
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        wait_until(lambda: logged_events(log, "loaded"), "the program is loaded")
        process.kill()
    wait_until(lambda: not running_process(child), "the program has ended")


def running_process(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_it_imports_no_heavy_packages() -> None:
    closure = "animl_pipeline.serve.__main__, animl_pipeline.serve.app, uvicorn, animl_pipeline.inference.classifier"
    code = f"import sys, onnxruntime, {closure}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"starlette", "onnxruntime", "PIL"} <= loaded
    assert not loaded & {"torch", "torchvision", "prefect", "boto3", "botocore", "pandas", "pyarrow", "requests", "timm", "yaml", "matplotlib"}


def test_the_files_in_its_docker_image_are_enough_to_answer(tmp_path: Path) -> None:
    dockerfile = (ROOT / "docker/endpoint.Dockerfile").read_text()
    for source in re.findall(r"^COPY (animl_pipeline\S+) /opt/program/", dockerfile, flags=re.MULTILINE):
        if source.endswith("/"):
            shutil.copytree(ROOT / source, tmp_path / source)
        else:
            (tmp_path / source).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / source)
    (tmp_path / "image").write_bytes(half_and_half())
    model = colour_model(tmp_path / "model")
    code = f"""
import importlib, pkgutil, animl_pipeline.serve as serve
assert serve.__file__.startswith({str(tmp_path)!r})
for module in pkgutil.iter_modules(serve.__path__):
    importlib.import_module(f"animl_pipeline.serve.{{module.name}}")
from pathlib import Path
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.box_type import WHOLE_IMAGE
assert serve.app.OPENAPI_FILE.is_file()
print(len(Classifier.load(Path({str(model)!r})).classify(open_image(Path("image").read_bytes()), WHOLE_IMAGE)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stdout, done.stderr) == ("3\n", "")


@given(
    st.sampled_from(["", "application/json", "application/octet-stream", "image/png", "multipart/form-data; boundary=x", "a/b"]),
    st.binary(max_size=300),
)
def test_any_bytes_are_parsed_or_refused(content_type: str, body: bytes) -> None:
    found = parse_or_error(parse_request, content_type, body)
    assert isinstance(found, ClassifyRequest) or found.status in {400, 415}


JSON_VALUES = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=5))


@given(JSON_VALUES)
def test_any_value_is_a_box_or_refused(value: Any) -> None:
    found = parse_or_error(parse_box, value)
    if isinstance(found, RequestError):
        assert found.status == 400
    else:
        assert 0 <= found.ymin < found.ymax <= 1
        assert 0 <= found.xmin < found.xmax <= 1


def parse_or_error(read: Callable[..., Any], *given: Any) -> Any:
    """The result of ``read`` or its RequestError. Any other exception fails the test."""
    try:
        return read(*given)
    except RequestError as e:
        return e


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=4, max_size=4))
def test_a_box_as_list_equals_the_box_as_text(values: list[float]) -> None:
    ymin, ymax = sorted(values[:2])
    xmin, xmax = sorted(values[2:])
    if ymin < ymax and xmin < xmax:
        box = [ymin, xmin, ymax, xmax]
        assert parse_box(box) == parse_box(json.dumps(box)) == Box.of(box)
