"""Drawn crops that a tiny network learns to tell apart, as the steps before the training would leave them in a store."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Artifact, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.step_cache import BlobColumn, StepOutput, Store, Workspace, digest_of, open_store

SIZE = 32
CLASSES = ("fox", "bird", "skunk")
STEPS_PER_EPOCH = 5  # 41 crops in batches of 8, without the last, lone one
COLOURS = {"fox": (200, 90, 30), "bird": (60, 90, 200), "skunk": (30, 30, 30)}


def drawn_crop(class_id: str, number: int, size: int = SIZE) -> bytes:
    """A PNG of a blot in the class's colour on grainy green, never twice the same."""
    rng = np.random.default_rng([CLASSES.index(class_id), number])
    ground = (np.full((size, size, 3), (90, 140, 70)) + rng.integers(-25, 25, (size, size, 3))).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(ground)
    left, top = (int(v) for v in rng.integers(2, size // 3, 2))
    ImageDraw.Draw(image).ellipse((left, top, left + size // 2, top + size // 2), fill=COLOURS[class_id])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def crops_and_splits(store: Store, train: dict[str, int] | None = None, val: int = 6, size: int = SIZE) -> tuple[Artifact, Artifact]:
    """The two steps before, as the store would hold them: so many crops to train on, and ``val`` of each class to validate with."""
    train = train or {"fox": 24, "bird": 12, "skunk": 5}
    rows, sides = [], []
    for class_id, count in train.items():
        for number in range(count + val):
            data = drawn_crop(class_id, number, size)
            crop_id = digest_of([class_id, number])
            rows.append({"crop_id": crop_id, "class_id": class_id, "location": "", "blob": store.put_blob(data), "bytes": len(data)})
            sides.append({"crop_id": crop_id, "split": "train" if number < count else "val"})

    def crops(space: Workspace) -> StepOutput:
        write_parquet(space.out / "crops.parquet", pd.DataFrame(rows))
        return StepOutput(Counts(kept=len(rows)), (BlobColumn(file="crops.parquet"),))

    def splits(space: Workspace) -> StepOutput:
        write_parquet(space.out / "splits.parquet", pd.DataFrame(sides))
        return StepOutput(Counts(kept=len(sides)))

    config = {"train": train, "val": val, "size": size}
    made = store.make(Step("crops", version=1), config=config, build=crops)
    return made, store.make(Step("splits", version=1), config=config, build=splits)


def plan_with(**train: Any) -> Plan:
    """A small plan; ``train`` overrides its training part."""
    return check_plan(
        {
            "model": "island",
            "sources": [{"name": "drawn", "export": "export.json", "images": "images"}],
            "labels": {"classes": {c: [c] for c in CLASSES}},
            "model_input": {"size": SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
            "train": {"backbone": "test_resnet", "weights": "none", "epochs": 4, "batch_size": 8, "lr": 0.003, "augment": "none", **train},
        }
    )


def settings_at(folder: Path) -> Settings:
    return Settings(store=str(folder / "store"), data=folder, cache=folder / "cache", workers=2)


def trained_in(folder: Path, **train: Any) -> tuple[Store, Artifact]:
    """A training in a store of its own, which several tests look at."""
    settings = settings_at(folder)
    store = open_store(settings)
    return store, train_classifier(*crops_and_splits(store), plan_with(**train), store, settings)
