"""The work of benchmarks/gpu.sh: wall times on the device that the product itself chooses.

Detection: the step with MegaDetector Lite on images of 2048 x 1536 pixels in the store, and the ceiling: the same network on a ready batch.
Training: one more epoch of EfficientNet-Lite0 at 224 px (the difference of three epochs and two), and its share of waiting for the loader.
Embeddings: the step's networks over crops of 224 px.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from detections import make_labels
from measure import conclude, out, show
from pipeline import draw

IMAGES, FEW, CROPS_EACH = 512, 8, 8
WAIT_AIM = 0.05
BATCH = 32


def main() -> None:
    """All three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, help=f"{IMAGES} on a GPU, {FEW} without one")
    from animl_pipeline.steps.detections.inference_backend import find_device

    device = find_device()
    images = parser.parse_args().images or (FEW if device == "cpu" else IMAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        detected, ceiling = detection(folder, images, device)
        trained, waiting = training(folder / "training", images * CROPS_EACH)
        embedded = embeddings(folder / "embeddings", images * CROPS_EACH)
    rows = [("detection, the whole step", detected), ("detection, the network alone", ceiling), ("training, crops", trained)]
    show(f"images a second on {device}, {os.cpu_count()} cores", ("what", "a second"), [*rows, ("embeddings, crops and networks", embedded)])
    if device == "cpu":
        out.print("no GPU was found: these figures are of a few images on the CPU and mean nothing")
        conclude("gpu", figure="no GPU, nothing measured", aim="a machine with a GPU", met=False)
    share = detected / ceiling
    figure = f"detection {detected:.0f} images/s, {share:.0%} of the network's ceiling; training {trained:.0f} crops/s, {waiting:.1%} waiting"
    conclude("gpu", figure=figure, aim=f"waiting at most {WAIT_AIM:.0%}", met=waiting <= WAIT_AIM)


def detection(folder: Path, images: int, device: str) -> tuple[float, float]:
    """Images a second of the step, and of the network alone."""
    from animl_pipeline.config import DetectionsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.detections import detect_animals
    from animl_pipeline.steps.detections.choose_detector import choose_detector
    from animl_pipeline.storage.store import open_store

    draw(folder, min(images, 64))
    config, settings = DetectionsConfig(source="detector", batch_size=BATCH), Settings(store=str(folder / "store"))
    store, drawn = open_store(settings), [p.read_bytes() for p in sorted((folder / "images").iterdir())]
    data = [drawn[n % len(drawn)] + b"\0" * (n // len(drawn)) for n in range(images)]  # bytes after the end: other content, the same work
    rows = [{"image_id": f"{n:06}", "blob": store.put_blob(d), "bytes": len(d)} for n, d in enumerate(data)]
    detect_animals(make_labels(store, rows[: max(1, len(rows) // 8)]), config, store, settings)  # loads and warms up
    begun, before = time.monotonic(), max(1, len(rows) // 8)
    detect_animals(make_labels(store, rows), config, store, settings)
    step = (len(rows) - before) / (time.monotonic() - begun)
    detector: Any = choose_detector(config, settings).load()
    inputs = [detector.preprocess(d) for d in data[: BATCH if device != "cpu" else 1]]
    detector.predict(inputs)
    begun, rounds = time.monotonic(), 20 if device != "cpu" else 2
    for _ in range(rounds):
        detector.predict(inputs)
    return step, rounds * len(inputs) / (time.monotonic() - begun)


def training(folder: Path, crops: int) -> tuple[float, float]:
    """Crops a second of one more epoch, and the share of the time that was spent waiting for the loader."""
    from model import ours

    spec = argparse.Namespace(images=crops, size=224, batch=BATCH, backbone="tf_efficientnet_lite0")
    two, three = (ours(folder / str(epochs), spec, epochs) for epochs in (2, 3))
    seconds = three["wall_s"] - two["wall_s"]
    return crops / seconds, (three["waited_s"] - two["waited_s"]) / seconds


def embeddings(folder: Path, crops: int) -> float:
    """Crops a second of the step's frozen networks together."""
    from model import draw_crop

    from animl_pipeline.config import TrainingConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.integrations.weights import weights_digest
    from animl_pipeline.steps.embeddings.run_networks import run_network
    from animl_pipeline.storage.store import open_store

    settings = Settings(store=str(folder))
    store = open_store(settings)
    blobs = [store.put_blob(draw_crop(n, 224)) for n in range(crops)]
    begun = time.monotonic()
    networks = TrainingConfig().networks
    for network in networks:
        run_network(network, weights_digest(network.network, network.weights, settings, network.weights_sha256), blobs, 224, store, settings)
    return crops * len(networks) / (time.monotonic() - begun)


if __name__ == "__main__":
    main()
