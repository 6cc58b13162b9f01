"""What the tests of several packages share: a store in a folder, drawn pictures, and a real, tiny ONNX model."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import hypothesis
import numpy as np
import onnx
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.model_card import Agreement, ClassInfo, ModelCard, ModelInput
from animl_pipeline.storage.store import Store, open_store

# How long an example takes says something of the machine, not of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="module")
def one_thread() -> None:
    """Small tensors gain nothing from more threads, and the machine is shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that touch nothing outside of the test's folder."""
    return Settings(store=str(tmp_path / "store"), data=tmp_path, cache=tmp_path / "cache", workers=4, timeout_s=5)


@pytest.fixture
def store(settings: Settings) -> Store:
    """An empty store in a folder."""
    return open_store(settings)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """A real S3 API over HTTP on this machine."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new, empty bucket; boto3 finds the server through its usual variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_address)
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    name = f"animl-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def prefect_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server with all its services, started when the first test asks for it."""
    from tests.support.prefect_server import prefect_server, send_remaining_events, use_server

    with prefect_server(tmp_path_factory.mktemp("server")) as address:
        yield address
        with use_server(address):
            send_remaining_events()


@pytest.fixture(scope="module")
def prefect(prefect_address: str) -> Iterator[str]:
    """The server's address, which the flows of this process use while a module's tests run."""
    from tests.support.prefect_server import use_server

    with use_server(prefect_address):
        yield prefect_address


def jpeg(width: int = 64, height: int = 48, colour: tuple[int, int, int] = (90, 120, 60), seed: int = 0) -> bytes:
    """A JPEG of one colour with some grain, so that no two seeds give the same bytes."""
    grain = np.random.default_rng(seed).integers(-12, 12, (height, width, 3))
    pixels = (np.full((height, width, 3), colour) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def colour_model(folder: Path, classes: tuple[str, ...] = ("red", "green", "blue"), size: int = 32, version: str = "1") -> Path:
    """A folder with a real ONNX model whose embedding is the mean of R, G and B, whose logits are four times that (then zeros), and its card."""
    weights = np.zeros((3, len(classes)), np.float32)
    for i in range(min(3, len(classes))):
        weights[i, i] = 4.0
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
        onnx.helper.make_node("Flatten", ["pooled"], ["embedding"]),
        onnx.helper.make_node("MatMul", ["embedding", "weights"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "colour",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 3, size, size])],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", n]) for name, n in (("logits", len(classes)), ("embedding", 3))],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    card = ModelCard(
        model="colours",
        version=version,
        architecture="mean-colour",
        classes=tuple(ClassInfo(id=c, name=c) for c in classes),
        model_input=ModelInput(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        onnx_sha256=hashlib.sha256(data).hexdigest(),
        agreement=Agreement(max_abs=0.0, crops=1),
        data_digest="0" * 64,
        weights="none",
        plan={},
        metrics={"macro_f1": 1.0},
    )
    (folder / "card.json").write_text(card.model_dump_json(indent=1), encoding="utf-8")
    return folder
