"""Small synthetic training data: crops of three classes that a tiny network learns to tell apart, and a plan that trains on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.manifest import BlobColumn, digest_of
from animl_pipeline.storage.store import StepOutput, Store, Workspace, open_store
from tests.support.table_rows import fill_rows

SIZE = 32
CLASSES = ("fox", "bird", "skunk")
STEPS_PER_EPOCH = 5  # 41 crops in batches of 8; the last batch would hold one crop and is left out
COLOURS = {"fox": (200, 90, 30), "bird": (60, 90, 200), "skunk": (30, 30, 30)}


def draw_crop(class_id: str, number: int, size: int = SIZE) -> bytes:
    """A PNG of an ellipse in the class's colour on a noisy green background. Every number gives another image."""
    rng = np.random.default_rng([CLASSES.index(class_id), number])
    ground = (np.full((size, size, 3), (90, 140, 70)) + rng.integers(-25, 25, (size, size, 3))).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(ground)
    left, top = (int(v) for v in rng.integers(2, size // 3, 2))
    ImageDraw.Draw(image).ellipse((left, top, left + size // 2, top + size // 2), fill=COLOURS[class_id])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def crops_and_splits(store: Store, train: dict[str, int] | None = None, val: int = 6, size: int = SIZE) -> tuple[Artifact, Artifact]:
    """The artifacts of the steps crops and splits.

    Args:
        store: gets the artifacts.
        train: the number of train crops of each class.
        val: the number of val crops of each class.
        size: width and height of a crop in pixels.
    """
    train = train or {"fox": 24, "bird": 12, "skunk": 5}
    crop_rows, split_rows = [], []
    for class_id, count in train.items():
        for number in range(count + val):
            data = draw_crop(class_id, number, size)
            crop_id = digest_of([class_id, number])
            crop_rows.append({"crop_id": crop_id, "class_id": class_id, "blob": store.put_blob(data), "bytes": len(data)})
            split_rows.append({"crop_id": crop_id, "split": "train" if number < count else "val"})

    return store_crops(store, crop_rows, split_rows, {"train": train, "val": val, "size": size})


def store_crops(store: Store, crop_rows: list[dict[str, Any]], split_rows: list[dict[str, Any]], config: dict[str, Any]) -> tuple[Artifact, Artifact]:
    """The steps crops and splits with these rows; ``config`` tells them from others."""

    def crops(space: Workspace) -> StepOutput:
        write_table(space.out, CROPS, fill_rows(CROPS, crop_rows))
        return StepOutput(Counts(kept=len(crop_rows)), (BlobColumn(file=CROPS.file),))

    def splits(space: Workspace) -> StepOutput:
        write_table(space.out, SPLITS, fill_rows(SPLITS, split_rows))
        return StepOutput(Counts(kept=len(split_rows)))

    made = store.make(Step("crops", version=1), config=config, build=crops)
    return made, store.make(Step("splits", version=1), config=config, build=splits)


def plan_with(**train: Any) -> Plan:
    """A small plan; ``train`` overrides keys of its section train."""
    return check_plan(
        {
            "model": "island",
            "sources": [{"name": "drawn", "export": "export.json", "images": "images"}],
            "labels": {"classes": {c: [c] for c in CLASSES}},
            "model_input": {"size": SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
            "train": {
                "recipe": "fine_tune",
                "select": "validation",
                "backbone": "test_resnet",
                "weights": "none",
                "epochs": 4,
                "batch_size": 8,
                "lr": 0.003,
                "augment": "none",
                **train,
            },
        }
    )


def settings_at(folder: Path) -> Settings:
    """Settings with a store in this folder."""
    return Settings(store=str(folder / "store"), data=folder, cache=folder / "cache", workers=2)


def train_in(folder: Path, **train: Any) -> tuple[Store, Artifact]:
    """A trained model in a store of its own."""
    settings = settings_at(folder)
    store = open_store(settings)
    return store, train_classifier(*crops_and_splits(store), plan_with(**train), store, settings)
