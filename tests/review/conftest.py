"""A released colour model with the animals that it learnt from, and images of a day at two locations."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.deploy.trained_versions import save_report
from animl_pipeline.inference.embedding_reference import EmbeddingReference, fit_reference, with_limit
from animl_pipeline.storage.store import Store
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
    save_report(make_report(package, store), store)
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
