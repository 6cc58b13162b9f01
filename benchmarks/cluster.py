"""Detection and crops on Dask with 1, 2 and 4 worker processes of one thread on this machine: the same digests, throughput, CPU for an image.

The functions are those that Prefect's tasks call on a cluster's workers; benchmarks/flows.py has what Prefect itself costs. Workers have
imported everything before; each batch loads the detector. More workers than cores give no more images a second; their CPU for an image shows what
sharing the work costs. Afterwards the steps run as usual, find everything in the image index, and must give the same digests as without
a cluster.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detections import SIZE, make_labels
from measure import conclude, show
from pipeline import draw

IMAGES, WORKERS, BATCHES = 256, (1, 2, 4), 16
MOST_CPU, LEAST_SPEED = 1.15, 0.8
"""CPU for an image with the most workers against one worker; speed of as many workers as cores, for each of them, against one worker."""


def cpu_seconds() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def warm_up(store: str) -> None:
    """Import in a worker what its tasks need."""
    from animl_pipeline.config import DetectionsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.crops import extract_crops_share  # noqa: F401 - for its imports
    from animl_pipeline.steps.detections.choose_detector import choose_detector

    choose_detector(DetectionsConfig(source="detector", confidence=0.2), Settings(store=store)).load()


def detect_share(labels: Any, store: str, share: int) -> float:
    """A worker's task; its CPU seconds."""
    from animl_pipeline.config import DetectionsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.detections import run_detector_share
    from animl_pipeline.storage.store import open_store

    begun, settings = cpu_seconds(), Settings(store=store, workers=1)
    run_detector_share(labels, DetectionsConfig(source="detector", confidence=0.2), share, BATCHES, open_store(settings), settings)
    return cpu_seconds() - begun


def crop_share(labels: Any, detections: Any, store: str, share: int) -> float:
    """A worker's task; its CPU seconds."""
    from animl_pipeline.config import CropsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.core.model_card import ModelInput
    from animl_pipeline.steps.crops import extract_crops_share
    from animl_pipeline.storage.store import open_store

    begun, settings = cpu_seconds(), Settings(store=store, workers=1)
    extract_crops_share(labels, detections, CropsConfig(), ModelInput(size=224), share, BATCHES, open_store(settings), settings)
    return cpu_seconds() - begun


def run(images: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Both steps in a new store, their work done before by ``workers`` processes (0: by the steps themselves)."""
    from animl_pipeline.config import CropsConfig, DetectionsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.core.model_card import ModelInput
    from animl_pipeline.steps.crops import extract_crops
    from animl_pipeline.steps.detections import detect_animals
    from animl_pipeline.storage.store import open_store

    distributed: Any = import_module("dask.distributed")  # it has no types
    settings = Settings(store=str(folder / f"store-{workers}"), workers=1)
    store = open_store(settings)
    files = sorted(images.iterdir())
    size = {"width": SIZE[0], "height": SIZE[1]}
    labels = make_labels(store, [{"image_id": p.name, "blob": store.put_blob(p.read_bytes()), "bytes": p.stat().st_size} | size for p in files])
    found: dict[str, Any] = {"cpu": 0.0, "wall": 0.0}

    def share(client: Any, task: Any, *arguments: Any) -> None:
        begun = time.monotonic()
        found["cpu"] += sum(client.gather([client.submit(task, *arguments, str(settings.store), n, pure=False) for n in range(BATCHES)]))
        found["wall"] += time.monotonic() - begun

    if workers:
        options = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
        with distributed.LocalCluster(**options) as started, distributed.Client(started) as client:
            client.run(warm_up, str(settings.store))
            share(client, detect_share, labels)
            detections = detect_animals(labels, DetectionsConfig(source="detector", confidence=0.2), store, settings)
            share(client, crop_share, labels, detections)
    detections = detect_animals(labels, DetectionsConfig(source="detector", confidence=0.2), store, settings)
    crops = extract_crops(labels, detections, CropsConfig(), ModelInput(size=224), store, settings)
    return found | {"digests": (detections.digest, crops.digest), "crops": crops.counts.kept}


def main() -> None:
    """All numbers of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    count = parser.parse_args().images
    os.environ |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(Path(__file__).parent)}  # the workers' too
    with TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, count)
        alone = run(folder / "images", folder, 0)
        runs = {w: run(folder / "images", folder, w) for w in WORKERS}
    same = all(r["digests"] == alone["digests"] for r in runs.values())
    speed = {w: count / r["wall"] for w, r in runs.items()}
    rows = [(w, speed[w], speed[w] / speed[1], 1e3 * r["cpu"] / count, "yes" if r["digests"] == alone["digests"] else "NO") for w, r in runs.items()]
    columns = ("workers", "images a s", "times one", "CPU ms an image", "same digests")
    show(f"{count} images, {alone['crops']} crops, {os.cpu_count()} cores", columns, rows)
    most, full = max(WORKERS), max(w for w in WORKERS if w <= (os.cpu_count() or 1))
    cpu, each = runs[most]["cpu"] / runs[1]["cpu"], speed[full] / speed[1] / full
    conclude(
        "cluster",
        figure=f"digests {'the same' if same else 'DIFFER'}; {full} workers {each * full:.2f} x as fast as one; CPU of {most} workers {cpu:.2f} x",
        aim=f"the same; at least {LEAST_SPEED * full:g} x; at most {MOST_CPU:g} x",
        met=same and each >= LEAST_SPEED and cpu <= MOST_CPU,
    )


if __name__ == "__main__":
    main()
