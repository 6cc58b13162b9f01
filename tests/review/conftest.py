"""A released colour model with the animals that it learnt from, and images of a day at two locations."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr

from animl_pipeline.config import Plan, SourceConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.deploy.release_history import new_record, write_record
from animl_pipeline.deploy.trained_versions import TrainedVersion, save_report, save_version
from animl_pipeline.inference.embedding_reference import EmbeddingReference, fit_reference, with_limit
from animl_pipeline.storage.store import Store
from tests.support.animl_images import AnimlImage
from tests.support.animl_server import AnimlServer
from tests.support.packaged_model import CLASSES, colour_plan_data, make_package, make_report

_seeds = itertools.count()
RED, GREEN, BLUE, GREY, STRANGE = (220, 40, 40), (40, 220, 40), (40, 40, 220), (128, 128, 128), (250, 250, 250)


def colour_reference() -> EmbeddingReference:
    """What the colour model learnt from: 30 animals of each colour at ten locations."""
    random = np.random.default_rng(0)
    numbers = np.repeat(np.arange(3), 30)
    means = 2 * np.array([RED, GREEN, BLUE]) / 255 - 1
    embeddings = means[numbers] + random.normal(0, 0.05, (90, 3))
    reference = fit_reference(embeddings, numbers)
    logits = 4 * embeddings
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return with_limit(reference, reference.distances(reference.points), probability)


@pytest.fixture
def plan(store: Store, tmp_path: Path) -> Plan:
    """The plan of the model, whose latest version is in the store."""
    package = make_package(store, tmp_path, reference=colour_reference(), thresholds=dict.fromkeys(CLASSES, 0.8))
    report = make_report(package, store)
    save_report(report, store)
    save_version(TrainedVersion(report=report), store)
    return check_plan(colour_plan_data() | {"production": {"detector_confidence": 0.1}})


def write_image(path: Path, colour: tuple[int, int, int], taken: str = "") -> str:
    """Write a JPEG of one colour with some grain, and return its name in its grandparent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grain = np.random.default_rng(next(_seeds)).integers(-5, 5, (48, 64, 3))
    exif = Image.Exif()
    if taken:
        exif.get_ifd(0x8769)[0x9003] = taken
    buffer = io.BytesIO()
    Image.fromarray((np.full((48, 64, 3), colour) + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", exif=exif)
    path.write_bytes(buffer.getvalue())
    return f"{path.parent.name}/{path.name}"


def write_results(path: Path, boxes: dict[str, list[tuple[str, float]]]) -> Path:
    """A MegaDetector results file: image → category and confidence of its boxes."""
    images: list[dict[str, Any]] = [
        {"file": file, "detections": [{"category": c, "conf": conf, "bbox": [0.1, 0.1, 0.5, 0.5]} for c, conf in found]}
        for file, found in boxes.items()
    ]
    names = {"1": "animal", "2": "person", "3": "vehicle"}
    path.write_text(json.dumps({"info": {"format_version": "1.3"}, "detection_categories": names, "images": images}))
    return path


def unreview(images: list[AnimlImage]) -> list[AnimlImage]:
    """The same images as the detector left them."""
    for image in images:
        for thing in image.objects:
            thing.validated, thing.date = False, None
    return images


def put_image(image: AnimlImage, folder: Path, colour: tuple[int, int, int]) -> str:
    """Write an image, give it its md5 as Animl's id, and return its path as exports name it."""
    drawn = folder / write_image(folder / "drawn" / "image.jpg", colour)
    image.id = f"isle:{hashlib.md5(drawn.read_bytes(), usedforsecurity=False).hexdigest()}"
    path = f"isle/{image.camera}/{image.deployment.lower()}/{image.id.replace(':', '-')}.jpg"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    drawn.rename(folder / path)
    return path


def animl_settings(site: AnimlServer, settings: Settings) -> Settings:
    """The settings of a user of the test's Animl."""
    return settings.model_copy(
        update={"api_url": site.url, "id_token": SecretStr("token-of-a-service-user"), "poll_s": 0.01, "image_url": "https://animl.test/{image}"}
    )


def with_project(plan: Plan, folder: Path, **sections: Any) -> Plan:
    """The plan with an Animl project, whose images are in a folder, and other sections."""
    source = SourceConfig(name="isle", export="animl://isle", images=str(folder))
    return plan.model_copy(update={"sources": (source,), **sections})


def release_record(plan: Plan, version: str, at: datetime, store: Store) -> None:
    """Note that a version of the plan's model was released at a time."""
    base = plan.release.endpoints(plan.model)[0].base_name
    values = {"model": plan.model, "base_name": base, "endpoint": base, "endpoint_config": "c", "previous_config": None, "sagemaker_model": "m"}
    record = new_record("release", version=version, package=None, **values)
    write_record(record.model_copy(update={"state": "done", "begun_at": at.isoformat(), "ended_at": at.isoformat()}), store)
