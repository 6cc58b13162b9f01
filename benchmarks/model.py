"""Training on a CPU: images per CPU second of the training step and of a usual training loop, and how long the step waits for data.

The usual loop ("recipe") is what camera-trap classifier recipes do: JPEG crops in folders, torchvision's ImageFolder with Resize and
ToTensor, two loader workers, float32, SGD. "ours" is the training step as it is used, with augmentation, weighted sampling,
checkpoints and val scores. Both have the same backbone, image size, batch size and images. Each trains one epoch and three epochs in a
process of its own. The difference of two epochs counts, so imports, decoding and export do not.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.core.tables import Table, write_table

if TYPE_CHECKING:
    from animl_pipeline.config import Plan
    from animl_pipeline.core.artifacts import Artifact
    from animl_pipeline.storage.store import Store

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

AIM, WAIT_AIM = 3.0, 0.05
CLASSES = ("fox", "bird", "rodent", "skunk")
FEW, MANY = 1, 3


def draw_crop(number: int, size: int) -> bytes:
    """A PNG with noise and edges like a photograph. Every number gives another image."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(40, 200, (size // 16, size // 16, 3)).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.int16) + rng.integers(-10, 10, (size, size, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def ours(folder: Path, spec: argparse.Namespace, epochs: int) -> dict[str, float]:
    """Run the training step, in a thread as the flow does. Returns the seconds that it waited for batches, and all seconds."""
    from concurrent.futures import ThreadPoolExecutor

    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.training import train_classifier
    from animl_pipeline.storage.store import open_store

    settings = Settings(store=str(folder / "store"), data=folder, cache=folder / "cache", workers=2)
    store = open_store(settings)
    crops, splits = make_crops_and_splits(store, spec)
    waited = time_loaders()
    begun = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train_classifier, crops, splits, plan_of(spec, epochs), store, settings).result()
    return {"waited_s": waited[0], "wall_s": time.perf_counter() - begun}


def plan_of(spec: argparse.Namespace, epochs: int) -> Plan:
    """A plan with the default options and random weights, so that all layers are trained, as in the recipe."""
    from animl_pipeline.config import check_plan

    return check_plan(
        {
            "model": "bench",
            "sources": [{"name": "drawn", "export": "export.json", "images": "images"}],
            "labels": {"classes": {c: [c] for c in CLASSES}},
            "model_input": {"size": spec.size, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
            "train": {
                "recipe": "fine_tune",
                "select": "validation",
                "backbone": spec.backbone, "weights": "none", "epochs": epochs, "batch_size": spec.batch, "checkpoint_steps": 10**6,
                "frozen_layers": 0, "freeze_norm": False,
            },
        }
    )  # fmt: skip


def make_crops_and_splits(store: Store, spec: argparse.Namespace) -> tuple[Artifact, Artifact]:
    """The artifacts of the steps crops and splits."""
    crop_rows, split_rows = [], []
    for number in range(spec.images + len(CLASSES)):
        data = draw_crop(number, spec.size)
        class_id = CLASSES[number % len(CLASSES)]
        crop_rows.append({"crop_id": f"{number:032x}", "class_id": class_id, "blob": store.put_blob(data), "bytes": len(data)})
        split_rows.append({"crop_id": f"{number:032x}", "split": "train" if number < spec.images else "val"})
    return make_table_step(store, "crops", CROPS, crop_rows), make_table_step(store, "splits", SPLITS, split_rows)


def make_table_step(store: Store, name: str, table: Table, rows: list[dict[str, Any]]) -> Artifact:
    """An artifact with one table. Columns that the training does not read are empty."""
    import pandas as pd

    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.storage.store import BlobColumn, StepOutput, Workspace

    empty = {"string": "", "int64": 0, "double": 0.0, "bool": False}
    frame = pd.DataFrame({c.name: [row.get(c.name, empty[c.type]) for row in rows] for c in table.columns})

    def build(space: Workspace) -> StepOutput:
        write_table(space.out, table, frame)
        return StepOutput(Counts(kept=len(rows)), (BlobColumn(file=table.file),) if "blob" in table.names() else ())

    return store.make(Step(name, version=1), config={"rows": len(rows)}, build=build)


def time_loaders() -> list[float]:
    """Measure how long every DataLoader is waited for. Returns a list whose only entry is the seconds so far."""
    from torch.utils.data import DataLoader

    waited, clock = [0.0], time.perf_counter
    plain = DataLoader.__iter__

    def timed(loader: DataLoader[Any]) -> Iterator[Any]:
        batches = plain(loader)
        while True:
            begun = clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                waited[0] += clock() - begun
            yield batch

    DataLoader.__iter__ = timed  # type: ignore[method-assign]  # to measure it
    return waited


def recipe(folder: Path, spec: argparse.Namespace, epochs: int) -> dict[str, float]:
    """A usual training loop."""
    import timm
    import torch
    from PIL import Image
    from torchvision import datasets, transforms

    for number in range(spec.images):
        target = folder / "train" / CLASSES[number % len(CLASSES)]
        target.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(draw_crop(number, spec.size))).save(target / f"{number}.jpg")
    resize = transforms.Compose([transforms.Resize((spec.size, spec.size)), transforms.ToTensor()])
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(str(folder / "train"), resize), spec.batch, shuffle=True, num_workers=2)
    model = timm.create_model(spec.backbone, num_classes=len(CLASSES))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss()
    begun = time.perf_counter()
    for _ in range(epochs):
        model.train()
        for images, targets in loader:
            optimiser.zero_grad()
            loss = loss_of(model(images), targets)
            loss.backward()
            optimiser.step()
    return {"waited_s": 0.0, "wall_s": time.perf_counter() - begun}


def main() -> None:
    """Compare both, or run one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--run", choices=["ours", "recipe"], help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    spec = parser.parse_args()
    if spec.run:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"ours": ours, "recipe": recipe}[spec.run](Path(folder), spec, spec.epochs)))
        return
    compare(spec)


def compare(spec: argparse.Namespace) -> None:
    """Run both one after the other and print the figures."""
    from measure import conclude, measured, show

    plain = ["--images", str(spec.images), "--size", str(spec.size), "--batch", str(spec.batch), "--backbone", spec.backbone]
    rows, cost, waited = [], {}, 0.0
    for who in ("recipe", "ours"):
        environment = os.environ | ({"MALLOC_ARENA_MAX": "1"} if who == "ours" else {})  # as the command line and a worker's runs have it
        few, many = (measured(Path(__file__), *plain, "--run", who, "--epochs", str(n), env=environment) for n in (FEW, MANY))
        images = spec.images * (MANY - FEW)
        cost[who] = (many.cpu_s - few.cpu_s) / images
        wall = many.said["wall_s"] - few.said["wall_s"]
        if who == "ours":
            waited = (many.said["waited_s"] - few.said["waited_s"]) / wall
        rows.append((who, cost[who], 1 / cost[who], many.peak_mb))
    title = f"{spec.backbone}, {spec.size} px, batches of {spec.batch}, {spec.images} crops, two epochs"
    show(title, ("", "CPU s an image", "images a CPU s", "peak MB"), rows)
    ratio = cost["recipe"] / cost["ours"]
    figure = f"{ratio:.2f} times the images a CPU second; {100 * waited:.1f} % of the time spent waiting for data"
    conclude("model", figure=figure, aim=f"at least {AIM} times; below {100 * WAIT_AIM:.0f} %", met=ratio >= AIM and waited < WAIT_AIM)


if __name__ == "__main__":
    main()
