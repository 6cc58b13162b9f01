"""CPU seconds of the default recipe for 10,000 crops, and again with 5 % more: embeddings by the default networks, and the head with five folds.

python benchmarks/heads.py [--crops 10000]

Drawn crops of the default model input, eight classes at 100 locations, one label of 20 wrong. Each run is a process of its own with the steps
embeddings and training as a flow calls them; the ONNX file and its check are part of the training. The second run finds the store of the first.
Drawing the crops does not count. Aim: the second run takes at most 7 % of the first.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from measure import conclude, measured, show
from model import make_table_step
from numpy.typing import NDArray
from PIL import Image
from pipeline import Phases

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.steps.embeddings import embed_crops
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.store import Store, open_store

CROPS_FIRST, NEW_SHARE, AIM = 10_000, 0.05, 0.07
CLASSES, LOCATIONS, VAL_LOCATIONS = tuple(f"class{n}" for n in range(8)), 100, 15
WRONG = 0.05
PHASES = ("start", "embeddings", "training")


def plan() -> Plan:
    """The default recipe."""
    source = {"name": "drawn", "export": "export.json", "images": "images"}
    return check_plan(
        {
            "model": "bench",
            "sources": [source],
            "labels": {"classes": {c: [c] for c in CLASSES}},
            "train": {"recipe": "head"},
            "package": {"torch_onnx_tolerance": 0.01},
        }
    )


def draw_crop(number: int, size: int) -> bytes:
    """A PNG with grain, in which the patterns of a class, of a location and of the crop itself are mixed."""

    def pattern(seed: list[int], cells: int) -> NDArray[np.float32]:
        noise = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC), np.float32)

    mixed = 0.3 * pattern([0, number % len(CLASSES)], 8) + 0.3 * pattern([1, number % LOCATIONS], 4) + 0.4 * pattern([2, number], 14)
    grain = np.random.default_rng(number).normal(0, 6, mixed.shape)
    buffer = io.BytesIO()
    Image.fromarray((mixed + grain).clip(0, 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def draw(store: Store, crops: int, size: int) -> list[tuple[str, int]]:
    """sha256 and size of each drawn crop in the store."""
    found = []
    for number in range(crops):
        data = draw_crop(number, size)
        found.append((store.put_blob(data, durable=False), len(data)))
    store.object_store.flush()
    return found


def make_crops_and_splits(store: Store, blobs: list[tuple[str, int]]) -> tuple[Artifact, Artifact]:
    """The artifacts of the steps crops and splits."""
    label = np.arange(len(blobs)) % len(CLASSES)
    wrong = np.random.default_rng(0).random((len(blobs), 2))
    label = np.where(wrong[:, 0] < WRONG, (wrong[:, 1] * len(CLASSES)).astype(int), label)
    crops = [
        {
            "crop_id": f"{n:032x}", "image_id": f"{n:06}", "image": f"{n:064x}", "source": "drawn", "class_id": CLASSES[label[n]],
            "location": f"drawn/{n % LOCATIONS}", "blob": blob, "bytes": size,
        }
        for n, (blob, size) in enumerate(blobs)
    ]  # fmt: skip
    splits = [{"crop_id": row["crop_id"], "split": "val" if n % LOCATIONS < VAL_LOCATIONS else "train"} for n, row in enumerate(crops)]
    return make_table_step(store, "crops", CROPS, crops), make_table_step(store, "splits", SPLITS, splits)


def run(folder: Path, crops: int) -> dict[str, dict[str, float]]:
    """Embed and train; CPU and wall seconds by phase."""
    phases, settings, config = Phases(), Settings(store=str(folder / "store"), data=folder), plan()
    store = open_store(settings)
    blobs = json.loads((folder / "blobs.json").read_text())[:crops]
    made, splits = make_crops_and_splits(store, blobs)
    phases.stop("start")
    embeddings = embed_crops(made, splits, config.train.networks, config.model_input.size, store, settings)
    phases.stop("embeddings")
    train_classifier(made, splits, config, store, settings, embeddings=embeddings)
    phases.stop("training")
    return dict(phases.found)


def main() -> None:
    """Draw the crops and run twice, or be one of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=CROPS_FIRST, help="crops of the first run (default: %(default)s)")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    spec = parser.parse_args()
    if spec.run:
        print(json.dumps(run(spec.run, spec.crops)))
        return
    with TemporaryDirectory() as name:
        folder, more = Path(name), round(spec.crops * (1 + NEW_SHARE))
        store = open_store(Settings(store=str(folder / "store")))
        (folder / "blobs.json").write_text(json.dumps(draw(store, more, plan().model_input.size)))
        runs = [measured(Path(__file__), "--run", name, "--crops", str(crops), env=dict(os.environ)) for crops in (spec.crops, more)]
    columns = ("crops", *(f"{phase}, CPU s" for phase in PHASES), "whole process, CPU s", "wall s", "peak MB")
    rows = [
        [crops, *(r.said[p]["cpu"] for p in PHASES), r.cpu_s, sum(r.said[p]["wall"] for p in PHASES), r.peak_mb]
        for crops, r in zip((spec.crops, more), runs, strict=True)
    ]
    show(f"{len(CLASSES)} classes, {LOCATIONS} locations, {os.cpu_count()} cores", columns, rows)
    share = runs[1].cpu_s / runs[0].cpu_s
    figure = f"with {NEW_SHARE:.0%} more crops {share:.1%} of the first run's {runs[0].cpu_s:.0f} CPU s"
    conclude("heads", figure=figure, aim=f"at most {AIM:.0%}", met=share <= AIM)


if __name__ == "__main__":
    main()
