"""Offline model, endpoint program and local SageMaker give the same answers for a hundred real crops and a real network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import requests
from botocore.config import Config
from PIL import Image

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.animl_and_sagemaker_limits import MAX_IMAGE_BYTES, MAX_REQUEST_BYTES, RESIZED_WIDTH
from animl_pipeline.core.box_type import WHOLE_IMAGE, Box
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.model_card import Agreement, ClassInfo, ModelCard, ModelInput
from animl_pipeline.dev.sagemaker_local import local_sagemaker
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.integrations.weights import fetch_weights
from tests.support.endpoint_process import endpoint_process, ping, wait_until
from tests.support.paths import DATA

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not DATA.is_dir(), reason="the real test images are not available"),
]

ANIMALS = {"grey fox": 280, "hare": 331, "hog": 341, "ox": 345, "ram": 348, "skunk": 361, "cougar": 286, "hen": 8, "squirrel": 335, "elephant": 386}
"""Ten of ImageNet's classes: a network with its published weights separates them without training."""
LARGE = 8
"""Crops that are enlarged until Animl would resize their image."""
MAX_DIFFERENCE = 0.02


class Crop(NamedTuple):
    """A box of a real image: the camera's bytes, and the bytes that Animl sends."""

    image: bytes
    sent: bytes
    box: Box


def test_offline_program_and_sagemaker_give_equal_answers_for_a_hundred_real_crops(tmp_path: Path) -> None:
    model, crops = animal_model(tmp_path / "model"), real_crops(100)
    assert (len(crops), sum(c.image != c.sent for c in crops)) == (100, LARGE)
    classifier = Classifier.load(model)
    offline = [classifier.classify(open_image(c.sent), c.box) for c in crops]
    assert len({top(a) for a in offline}) > 5  # the network separates them
    live = {"program": by_program(model, crops, tmp_path / "log"), "local SageMaker": by_sagemaker(model, crops, tmp_path / "sagemaker")}
    for who, answers in live.items():
        worst = max(map(difference, offline, answers))
        print(f"{who}: {len(answers)} crops, top class equal in {sum(map(same_top, offline, answers))}, largest difference {worst:.2g}")  # noqa: T201
        assert all(map(same_top, offline, answers))
        assert worst <= MAX_DIFFERENCE
    resized = [(classifier.classify(open_image(c.image), c.box), a) for c, a in zip(crops, offline, strict=True) if c.image != c.sent]
    changes, kept = sorted(difference(*pair) for pair in resized), sum(same_top(*pair) for pair in resized)
    print(f"Animl's resizing changes {LARGE} answers by {changes[LARGE // 2]:.2g} (median) to {changes[-1]:.2g}; top class kept in {kept}")  # noqa: T201
    assert changes[LARGE // 2] <= MAX_DIFFERENCE


def by_program(model: Path, crops: list[Crop], log: Path) -> list[dict[str, float]]:
    with endpoint_process(model, log) as running:
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200", 120)

        def ask(body: bytes) -> dict[str, float]:
            answer = requests.post(f"{running.address}/invocations", data=body, timeout=60)
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        return [ask(request_body(c)) for c in crops]


def by_sagemaker(model: Path, crops: list[Crop], state: Path) -> list[dict[str, float]]:
    with local_sagemaker(state) as addresses:
        known: Any = {"region_name": "us-east-1", "aws_access_key_id": "test", "aws_secret_access_key": "test", "config": Config(read_timeout=120)}
        s3 = boto3.client("s3", endpoint_url=addresses.s3, **known)
        sagemaker = boto3.client("sagemaker", endpoint_url=addresses.sagemaker, **known)
        runtime = boto3.client("sagemaker-runtime", endpoint_url=addresses.sagemaker, **known)
        s3.create_bucket(Bucket="zoo")
        s3.put_object(Bucket="zoo", Key="model.tar.gz", Body=archive_of(model))
        name = f"parity-{uuid.uuid4().hex[:8]}"
        container: Any = {"Image": "animl", "ModelDataUrl": "s3://zoo/model.tar.gz"}
        sagemaker.create_model(ModelName=name, ExecutionRoleArn="arn:aws:iam::123456789012:role/sagemaker-local", PrimaryContainer=container)
        variant: Any = {"VariantName": "AllTraffic", "ModelName": name, "ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 5}}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        wait_until(lambda: sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "InService", "the endpoint is in service", 180)
        return [json.loads(runtime.invoke_endpoint(EndpointName=name, Body=request_body(c))["Body"].read()) for c in crops]


def request_body(crop: Crop) -> bytes:
    """A request as Animl sends it, within the limit of a serverless endpoint."""
    body = json.dumps({"image": base64.b64encode(crop.sent).decode(), "bbox": crop.box.as_list()}).encode()
    assert len(body) <= MAX_REQUEST_BYTES
    return body


def real_crops(wanted: int) -> list[Crop]:
    """Reviewed boxes and whole images of every source; the first ones enlarged until Animl would resize them."""
    boxed = [
        Crop(*[read(s, image)] * 2, box) for s, take in (("animl_py", 36), ("missouri", 32)) for image, box in boxes_of(s)[:: stride(s, take)][:take]
    ]
    whole = [Crop(*[read(s, image)] * 2, WHOLE_IMAGE) for s in ("cameratrapai", "ena24_zamba") for image in images_of(s)]
    large = [enlarged(c) for c in boxed[:LARGE]]
    return (large + boxed[LARGE:] + whole)[:wanted]


def enlarged(crop: Crop) -> Crop:
    """The image with a width of 4,800 pixels, and resized as Animl does it: to its width, as JPEG of quality 80."""
    img = open_image(crop.image)
    wide = img.resize((4800, round(4800 * img.height / img.width)), Image.Resampling.BICUBIC)
    original = as_jpeg(wide, 97)
    assert len(original) > MAX_IMAGE_BYTES
    return Crop(
        original, as_jpeg(wide.resize((RESIZED_WIDTH, round(RESIZED_WIDTH * wide.height / wide.width)), Image.Resampling.LANCZOS), 80), crop.box
    )


def as_jpeg(img: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    img.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def images_of(source: str) -> dict[str, Any]:
    export = json.loads((DATA / source / "cct.json").read_bytes())
    return {image["file_name"]: image for image in export["images"]}


def boxes_of(source: str) -> list[tuple[str, Box]]:
    """File name and box of every annotation that has one."""
    export = json.loads((DATA / source / "cct.json").read_bytes())
    images = {image["id"]: image for image in export["images"]}
    found = []
    for a in export["annotations"]:
        if a.get("bbox"):
            image, (x, y, w, h) = images[a["image_id"]], a["bbox"]
            sides = (y / image["height"], x / image["width"], (y + h) / image["height"], (x + w) / image["width"])
            found.append((image["file_name"], Box.of([min(max(s, 0.0), 1.0) for s in sides])))
    return found


def stride(source: str, wanted: int) -> int:
    return max(1, len(boxes_of(source)) // wanted)


def read(source: str, file_name: str) -> bytes:
    path = DATA / source / "images" / file_name
    return (path if path.exists() else DATA / source / file_name).read_bytes()


def animal_model(folder: Path) -> Path:
    """A package folder with EfficientNet-Lite0 as trained on ImageNet, reduced to ten classes."""
    import timm
    import torch

    from animl_pipeline.steps.training.onnx_export import export_onnx

    weights = torch.load(fetch_weights("efficientnet-lite0-imagenet", Settings(), key="train.weights"), map_location="cpu", weights_only=True)
    network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    rows = list(ANIMALS.values())
    head = torch.nn.Linear(network.classifier.in_features, len(rows))
    head.load_state_dict({"weight": network.classifier.weight[rows].detach(), "bias": network.classifier.bias[rows].detach()})
    network.classifier = head
    folder.mkdir()
    card = ModelCard(
        model="imagenet-animals",
        version="1",
        architecture="tf_efficientnet_lite0",
        classes=tuple(ClassInfo(id=name, name=name) for name in ANIMALS),
        model_input=ModelInput(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        onnx_sha256=export_onnx(network, 224, folder / "model.onnx"),
        agreement=Agreement(max_abs=0.0, crops=1),
        data_digest=hashlib.sha256(b"").hexdigest(),
        weights="efficientnet-lite0-imagenet",
        plan={},
        metrics={"macro_f1": 1.0},
    )
    (folder / "card.json").write_text(card.model_dump_json(), encoding="utf-8")
    return folder


def archive_of(model: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("model.onnx", "card.json"):
            archive.add(model / name, name)
    return buffer.getvalue()


def top(answer: dict[str, float]) -> str:
    return max(answer, key=lambda c: answer[c])


def same_top(one: dict[str, float], other: dict[str, float]) -> bool:
    return top(one) == top(other)


def difference(one: dict[str, float], other: dict[str, float]) -> float:
    assert one.keys() == other.keys()
    return max(abs(one[c] - other[c]) for c in one)
