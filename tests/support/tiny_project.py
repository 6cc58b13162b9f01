"""A tiny project for tests of the whole pipeline: coloured squares at eight locations, with boxes, and a plan that trains in seconds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tests.support.coco_export import Export

COLOURS = {"fox": (210, 120, 40), "rat": (90, 80, 160), "bird": (40, 160, 90)}


def draw_image(colour: tuple[int, int, int], seed: int) -> tuple[bytes, list[float]]:
    """A grainy 96 x 72 JPEG with one coloured square, and the square's [x, y, w, h]."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 120, (72, 96, 3)).astype(np.uint8)
    x, y = int(rng.integers(4, 60)), int(rng.integers(4, 40))
    pixels[y : y + 24, x : x + 24] = np.clip(np.array(colour) + rng.integers(-20, 20, (24, 24, 3)), 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue(), [x, y, 24, 24]


def write_project(folder: Path, locations: int = 8, each: int = 3) -> Path:
    """Write export.json, images/ and plan.yaml; returns the plan's path."""
    e = Export()
    for seed, (location, name, _) in enumerate((p, c, i) for p in range(locations) for c in COLOURS for i in range(each)):
        data, bbox = draw_image(COLOURS[name], seed)
        e.annotation(e.image(f"p{location}", data=data, width=96, height=72), list(COLOURS).index(name) + 1, bbox)
    e.categories = [{"id": 0, "name": "empty"}, *({"id": i + 1, "name": n} for i, n in enumerate(COLOURS))]
    e.write(folder)
    return write_plan(folder)


def write_plan(folder: Path, **changes: object) -> Path:
    """Write plan.yaml with some top-level keys changed. Returns its path."""
    plan = {
        "model": "tiny-island",
        "sources": [{"name": "isle", "export": str(folder / "export.json"), "images": str(folder / "images")}],
        "labels": {"classes": {c: [c] for c in COLOURS}},
        "model_input": {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "detections": {"source": "annotations"},
        "splits": {"val": 0.2, "test": 0.25, "max_rounds": 5},
        "train": {
            "recipe": "fine_tune",
            "select": "validation",
            "backbone": "tf_efficientnet_lite0",
            "weights": "none",
            "epochs": 1,
            "head_epochs": 0,
            "batch_size": 16,
        },
        "production": None,
        "gate": {"min_examples": 1, "min_locations": 1, "max_macro_f1_drop": 1.0, "min_macro_f1": 0.0},  # the pipeline is tested here, not the model
        "package": {"reference_predictions": 4},
        "release": {"memory_mb": 1024, "max_concurrency": 2, "timeout_s": 60},
    } | changes
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return path
