"""A detector behind a SageMaker endpoint: what is sent, what is retried, and which answers are refused."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError, DetectorUnreachableError
from animl_pipeline.steps.detections import detect_animals, sagemaker_detector
from animl_pipeline.steps.detections.choose_detector import choose_detector
from animl_pipeline.steps.detections.detector import Detection
from animl_pipeline.storage.store import Store
from tests.conftest import jpeg
from tests.support.detectors import label_row, make_labels

FOX = {"x1": 0.2, "y1": 0.1, "x2": 0.7, "y2": 0.5, "confidence": 0.8, "class": 1}
THROTTLED = (400, {"Code": "ThrottlingException", "message": "Rate exceeded"})
MAX_BYTES = 4_000_000


class Handler(http.server.BaseHTTPRequestHandler):
    """SageMaker's runtime API: gives the status and body that the test prepared for each call."""

    def do_POST(self) -> None:  # the name is http.server's
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, self.headers["Content-Type"], body))  # type: ignore[attr-defined] - the fixture's own list
        status, answer = self.server.answers.pop(0)  # type: ignore[attr-defined] - the fixture's own list
        data = json.dumps(answer).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("x-amzn-errortype", answer["Code"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


Endpoint = tuple[list[Any], list[Any]]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A runtime API on this machine: the requests that it got, and the answers that it will give."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.answers = [], []  # type: ignore[attr-defined] - read by the handler
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", f"http://127.0.0.1:{server.server_port}")
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-west-2"}.items():
        monkeypatch.setenv(name, value)
    yield server.requests, server.answers  # type: ignore[attr-defined] - set above
    server.shutdown()
    server.server_close()
    thread.join()


def detect(settings: Settings, image: bytes) -> list[Detection]:
    detector = choose_detector(DetectionsConfig(source="detector", detector="sagemaker:md-realtime"), settings).load()
    (detections,) = detector.predict([detector.preprocess(image)])
    return detections


def test_it_gets_the_images_bytes_and_gives_boxes_above_the_confidence(endpoint: Endpoint, settings: Settings) -> None:
    requests, answers = endpoint
    answers.append((200, [FOX, FOX | {"confidence": 0.1, "x1": 0.3}, FOX | {"class": 2, "confidence": 0.9}]))
    image = jpeg()
    assert detect(settings, image) == [Detection("2", 0.9, 0.1, 0.2, 0.5, 0.7), Detection("1", 0.8, 0.1, 0.2, 0.5, 0.7)]
    assert requests == [("/endpoints/md-realtime/invocations", "application/octet-stream", image)]


def test_a_throttled_or_starting_endpoint_is_tried_again(endpoint: Endpoint, settings: Settings) -> None:
    requests, answers = endpoint
    answers += [THROTTLED, (429, {"Code": "ModelNotReadyException", "message": "cold"}), (200, [])]
    assert detect(settings, jpeg()) == []
    assert len(requests) == 3


def test_an_endpoint_that_stays_throttled_or_has_no_host_is_unreachable(
    endpoint: Endpoint, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sagemaker_detector, "MAX_ATTEMPTS", 2)
    endpoint[1].extend([THROTTLED] * 2)
    with pytest.raises(DetectorUnreachableError):
        detect(settings, jpeg())
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", "http://127.0.0.1:9")
    with pytest.raises(DetectorUnreachableError):
        detect(settings, jpeg())


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((400, {"Code": "ValidationError", "message": "Endpoint md-realtime not found"}), "endpoint_refused"),
        ((200, {"fox": 0.9}), "endpoint_not_megadetector"),
        ((200, [FOX | {"class": 7}]), "endpoint_not_megadetector"),
        ((200, [FOX | {"x2": 640}]), "endpoint_not_megadetector"),
        ((200, [FOX | {"y1": float("nan")}]), "endpoint_not_megadetector"),
    ],
    ids=["refused", "other answer", "other class", "pixels", "not a number"],
)
def test_an_answer_that_is_not_megadetectors_is_refused_and_not_retryable(endpoint: Endpoint, settings: Settings, answer: Any, code: str) -> None:
    endpoint[1].append(answer)
    with pytest.raises(DetectionsError) as refused:
        detect(settings, jpeg())
    assert (refused.value.code, refused.value.retryable) == (code, False)
    assert "\n" not in str(refused.value)


def test_an_image_too_large_for_a_serverless_endpoint_is_encoded_again(endpoint: Endpoint, settings: Settings) -> None:
    requests, answers = endpoint
    answers.append((200, []))
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1300, 1200, 3), np.uint8)).save(buffer, "PNG")
    assert len(buffer.getvalue()) > MAX_BYTES
    detect(settings, buffer.getvalue())
    assert len(requests[0][2]) < MAX_BYTES
    assert Image.open(io.BytesIO(requests[0][2])).size == (1200, 1300)


def test_an_image_that_stays_too_large_is_scaled_down(endpoint: Endpoint, settings: Settings) -> None:
    requests, answers = endpoint
    answers += [(200, []), (200, [])]
    noise, buffer = np.random.default_rng(0).integers(0, 256, (4000, 2500, 3), np.uint8), io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    detect(settings, buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(noise[:, :60].reshape(-1, 3, 3)).resize((30, 65_520)).save(buffer, "BMP")
    detect(settings, buffer.getvalue())
    assert all(0 < len(body) <= MAX_BYTES for _, _, body in requests)
    assert Image.open(io.BytesIO(requests[0][2])).width > 1000
    assert Image.open(io.BytesIO(requests[1][2])).height <= 65_500


def test_after_one_refused_image_the_others_are_not_sent(endpoint: Endpoint, settings: Settings, store: Store) -> None:
    requests, answers = endpoint
    answers += [(400, {"Code": "ValidationError", "message": "Endpoint md not found"})] * 40
    labels = make_labels(store, [label_row(store, jpeg(seed=i), f"i{i}") for i in range(40)])
    config = DetectionsConfig(source="detector", detector="sagemaker:md")
    with pytest.raises(DetectionsError):
        detect_animals(labels, config, store, settings.model_copy(update={"workers": 1}))
    assert len(requests) < 10
