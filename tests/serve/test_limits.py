"""The endpoint program under malformed requests, too many requests, and little memory."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from animl_pipeline.serve.limits import usable_cores, usable_memory
from tests.conftest import colour_model, jpeg
from tests.support.endpoint_process import RunningEndpoint, endpoint_process, ping, post, wait_until
from tests.support.malformed_requests import send_malformed
from tests.support.paths import ROOT

BODY = json.dumps({"image": base64.b64encode(jpeg()).decode(), "bbox": [0, 0, 1, 1]}).encode()
NO_ANSWER = {0, 100}
"""Broken HTTP without an answer, or with "100 Continue" before the client disconnected."""
ERROR_STATUSES = {400, 404, 408, 413, 415, 429}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model(tmp_path_factory.mktemp("bounds") / "model")


@pytest.fixture
def live(model: Path, tmp_path: Path) -> Iterator[RunningEndpoint]:
    with endpoint_process(model, tmp_path / "log") as running:
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200")
        yield running


def resident_mb(live: RunningEndpoint) -> float:
    """The program's memory in MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{live.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def check_malformed_requests(live: RunningEndpoint, requests_sent: int, allowed_mb: float) -> None:
    """Send malformed requests; the program stays alive, answers no status above 499, and does not grow."""
    assert post(live.address, None, BODY).status_code == 200
    before = resident_mb(live)
    statuses = send_malformed(live.address, range(requests_sent))
    grown = resident_mb(live) - before
    print(f"{requests_sent:,} malformed requests: {dict(sorted(statuses.items()))}, {before:.0f} MB and {grown:+.0f} MB")  # noqa: T201 - figures, shown with -s
    assert set(statuses) <= {200} | ERROR_STATUSES | NO_ANSWER
    assert statuses[400] > requests_sent / 2
    assert live.process.poll() is None
    assert grown <= allowed_mb
    assert post(live.address, None, BODY).status_code == 200


def test_malformed_requests_are_refused_without_memory_growth(live: RunningEndpoint) -> None:
    check_malformed_requests(live, 300, 50)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20000_malformed_requests_are_refused_without_memory_growth(live: RunningEndpoint) -> None:
    check_malformed_requests(live, 20_000, 50)


CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method,allow_header_conformance"


@pytest.mark.parametrize("examples", [15, pytest.param(1500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_it_keeps_to_its_openapi_document(live: RunningEndpoint, tmp_path: Path, examples: int) -> None:
    """Schemathesis generates valid and invalid requests from the document, and checks the answers against it."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{live.address}/openapi.json", "--checks", CHECKS]
    draws = ["--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", "1"]
    done = subprocess.run([*command, *draws], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(next(line for line in done.stdout.splitlines() if "generated" in line))  # noqa: T201 - a figure, shown with -s
    assert live.process.poll() is None


def test_every_example_of_its_openapi_document_is_answered(live: RunningEndpoint) -> None:
    operation = requests.get(f"{live.address}/openapi.json", timeout=5).json()["paths"]["/invocations"]["post"]
    for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
        answer = post(live.address, "application/json", json.dumps(example["value"]).encode())
        assert answer.status_code == 200
        answers = answer.json() if "bboxes" in example["value"] else [answer.json()]
        assert all(sum(a.values()) == pytest.approx(1, abs=1e-5) for a in answers)


def test_more_requests_than_the_limit_get_429(model: Path, tmp_path: Path) -> None:
    with endpoint_process(model, tmp_path / "log", "--max-requests", "2") as running:
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200")
        with half_sent(running) as first, half_sent(running) as second:
            wait_until(lambda: post(running.address, None, BODY).status_code == 429, "both half-sent requests are counted")
            answer = post(running.address, None, BODY)
            assert (answer.headers["retry-after"], list(answer.json())) == ("1", ["error"])
            assert ping(running.address) == 200
            for waiting in (first, second):
                waiting.sendall(BODY[-10:])
                assert waiting.recv(17) == b"HTTP/1.1 200 OK\r\n"
        wait_until(lambda: post(running.address, None, BODY).status_code == 200, "requests are admitted again")


def half_sent(live: RunningEndpoint) -> socket.socket:
    """A request whose last ten bytes are still to come."""
    raw = socket.create_connection(("127.0.0.1", int(live.address.rsplit(":", 1)[1])), timeout=30)
    raw.sendall(b"POST /invocations HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY[:-10])
    return raw


def test_an_image_too_large_for_the_memory_is_refused_and_a_smaller_one_answered(model: Path, tmp_path: Path) -> None:
    with endpoint_process(model, tmp_path / "log", "--memory", "512") as running:
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200")
        answer = post(running.address, "image/png", flat_png(6000, 4000))
        assert answer.status_code == 400
        assert "but only 100 MB are available" in answer.json()["error"]
        assert post(running.address, "image/png", flat_png(3000, 2000)).status_code == 200


def flat_png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 20, 20)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def test_it_sends_no_usage_data(model: Path, tmp_path: Path) -> None:
    """By default, onnxruntime writes usage events and an id of the machine below the home folder."""
    code = f"from animl_pipeline.inference.classifier import Classifier; from pathlib import Path; Classifier.load(Path({str(model)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert list(tmp_path.iterdir()) == []


def test_cores_and_memory_are_read_from_the_container(tmp_path: Path) -> None:
    cores, memory = usable_cores(tmp_path), usable_memory(tmp_path)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert (usable_cores(tmp_path), usable_memory(tmp_path)) == (cores, memory)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert (usable_cores(tmp_path), usable_memory(tmp_path)) == (1, 1 << 30)


def test_cores_and_memory_are_read_from_a_cgroup_v1_container(tmp_path: Path) -> None:
    for name, number in {"cpu/cpu.cfs_quota_us": 100_000, "cpu/cpu.cfs_period_us": 100_000, "memory/memory.limit_in_bytes": 1 << 30}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{number}\n")
    assert (usable_cores(tmp_path), usable_memory(tmp_path)) == (1, 1 << 30)
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "none")
