"""Whether cost stays linear and memory bounded up to a million images: export, images to download, labels, boxes, splits, scores; the image index.

Each size runs in a process of its own: an export as Animl writes it; the choice of images to download, with limits of two classes; labels;
the step detections for a detector that has seen every image (its records are in the store's index, so no network runs); splits of stand-in
crops; and the scores with intervals of the test set, for random predictions. What writes the stand-ins does not count. Another process
writes and reads an image index in shards of 256 images, as downloads make them, before and after small shards are put together. The last
one divides 1,000 locations with 500 classes.

The figure for growth is the CPU for each image at the largest size, divided by that at the smallest. --sizes 20000 40000 for a try.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exports import write_export
from labels import CLASSES, _Clock, _stand_in_crops, _stand_in_images
from measure import conclude, measured, show

SIZES = (250_000, 500_000, 1_000_000)
GROWTH, PEAK_GB, SPLITS_S = 1.3, 4.0, 60.0
SPLIT_CLASSES, SPLIT_LOCATIONS, SPLIT_CROPS = 500, 1_000, 1_000_000
SHARD = 256
"""Images that a download adds to the index at a time."""


def whole(export: Path, folder: Path) -> dict[str, float]:
    """CPU seconds of each part for one export."""
    from animl_pipeline.config import DetectionsConfig, LabelsConfig, SourceConfig, SplitsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.detections import detect_animals
    from animl_pipeline.steps.detections.choose_detector import choose_detector
    from animl_pipeline.steps.evaluation.metrics import compute_metrics
    from animl_pipeline.steps.export import export_annotations
    from animl_pipeline.steps.images import estimate_download
    from animl_pipeline.steps.labels import SourceArtifacts, limits_of_classes, resolve_labels, wanted_labels
    from animl_pipeline.steps.splits import split_by_location
    from animl_pipeline.storage.store import open_store

    clock, settings = _Clock(), Settings(store=str(folder / "store"), cache=Path("~/.cache/animl-pipeline").expanduser())
    store = open_store(settings)
    source = SourceConfig.model_validate({"name": "island", "export": str(export), "images": str(folder)})
    config = LabelsConfig.model_validate({"classes": {c: [c] for c in CLASSES}})
    limited = LabelsConfig.model_validate({"classes": {c: {"from": [c], "max_per_location": 200} if i < 2 else [c] for i, c in enumerate(CLASSES)}})
    clock.stop("(imports)")
    exported = export_annotations(source, store, settings)
    clock.stop("export")
    limits = limits_of_classes(source, exported, limited, store, settings)
    estimate_download(source, exported, wanted_labels(limited, "island", settings), store, settings, limits=limits)
    clock.stop("images to download")
    images = _stand_in_images(store, exported)
    clock.stop("(images)")
    labels = resolve_labels([SourceArtifacts(source, exported, images)], config, store, settings)
    clock.stop("labels")
    detector = DetectionsConfig(source="detector", repeat_min_occasions=None)
    blobs = store.table(labels, "labels.parquet")["blob"].unique().tolist()
    record = {"boxes": [["1", 0.9, 0.1, 0.1, 0.4, 0.4]]}
    for start in range(0, len(blobs), 50_000):
        store.add_to_index(choose_detector(detector, settings).index_name(), dict.fromkeys(blobs[start : start + 50_000], record))
    del blobs
    clock.stop("(index)")
    detect_animals(labels, detector, store, settings)
    clock.stop("boxes")
    crops = _stand_in_crops(store, labels)
    clock.stop("(crops)")
    splits = split_by_location(crops, SplitsConfig(val=0.2, test=0.1), CLASSES, store, "bench")
    clock.stop("splits")
    scored = _random_predictions(store, crops, splits)
    clock.stop("(predictions)")
    compute_metrics(scored, CLASSES)
    clock.stop("scores")
    return clock.seconds


def _random_predictions(store: Any, crops: Any, splits: Any) -> Any:
    """The test crops with probabilities at random."""
    import numpy as np

    table, split = store.table(crops, "crops.parquet"), store.table(splits, "splits.parquet")
    test = table[table["crop_id"].isin(split.loc[split["split"] == "test", "crop_id"])].reset_index(drop=True)
    probability = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)), len(test))
    scored = test.assign(predicted=np.array(CLASSES, object)[probability.argmax(1)])
    return scored.assign(**{f"p_{c}": probability[:, i] for i, c in enumerate(CLASSES)})


def index(images: int, folder: Path) -> dict[str, float]:
    """CPU seconds to write an index of so many downloads, to read it, to put its shards together, and to read it again."""
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.storage import image_index
    from animl_pipeline.storage.store import open_store

    store = open_store(Settings(store=str(folder / "store"))).object_store
    record = {"bytes": 680_000, "height": 1536, "orientation": 1, "width": 2048}
    clock, now, found = _Clock(), time.time_ns, dict[str, float]()
    clock.stop("(imports)")
    then = now() - 2 * image_index.QUIET_NS
    for start in range(0, images, SHARD):
        records = {f"original/island-{n:032x}.jpg": record | {"blob": f"{n:064x}"} for n in range(start, min(start + SHARD, images))}
        image_index._write(store, "images/bench", f"{then + start:0{image_index.TIME_DIGITS}d}", records)
    clock.stop("write")
    found["shards"] = len(list(store.names("index/images/bench/")))
    image_index.compact_index(store, "images/bench")
    clock.stop("put together")
    found["shards then"] = len(list(store.names("index/images/bench/")))
    kept = image_index.read_index(store, "images/bench")
    clock.stop("read")
    assert len(kept) == images
    return clock.seconds | found


def splits(_: int, folder: Path) -> dict[str, float]:
    """CPU seconds of the search for splits."""
    from importlib import import_module

    splits_benchmark: Any = import_module("splits")  # of this folder
    splits_benchmark.CLASSES = tuple(f"class {i}" for i in range(SPLIT_CLASSES))
    counts = splits_benchmark.random_counts(SPLIT_CROPS, SPLIT_LOCATIONS, 1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    divided = splits_benchmark.optimised(counts)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "score": splits_benchmark.score(counts, divided)}


def compare(sizes: tuple[int, ...]) -> None:
    """All sizes, the tables, and the last line."""
    parts, indexes = {}, {}
    with TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        for n in sizes:
            write_export(folder / "export.json", n)
            parts[n] = _run("whole", str(folder / "export.json"), folder)
            indexes[n] = _run("index", str(n), folder)
        divided = _run("splits", "0", folder)
    names = [p for p in parts[sizes[0]].said if not p.startswith("(")]
    total = {n: sum(parts[n].said[p] for p in names) for n in sizes}
    show(
        "CPU s", ("images", *names, "in all", "peak GB"), [(n, *(parts[n].said[p] for p in names), total[n], parts[n].peak_mb / 1000) for n in sizes]
    )
    columns = ("write", "put together", "read", "shards", "shards then")
    show("image index: CPU s", ("images", *columns, "peak GB"), [(n, *(m.said[c] for c in columns), m.peak_mb / 1000) for n, m in indexes.items()])
    slopes = {p: parts[sizes[-1]].said[p] / sizes[-1] / max(parts[sizes[0]].said[p] / sizes[0], 1e-9) for p in names}
    show("growth of the CPU for an image, largest to smallest", ("part", "times"), list(slopes.items()))
    growth = total[sizes[-1]] / sizes[-1] / (total[sizes[0]] / sizes[0])
    peak = max(parts[sizes[-1]].peak_mb, indexes[sizes[-1]].peak_mb) / 1000
    seconds = divided.said["cpu"]
    conclude(
        "scale",
        figure=f"{sizes[-1]:,} images: CPU for an image {growth:.2f} times that at {sizes[0]:,}, {peak:.2f} GB; "
        f"{SPLIT_CLASSES} classes at {SPLIT_LOCATIONS:,} locations divided in {seconds:.0f} CPU s",
        aim=f"at most {GROWTH:g}, {PEAK_GB:g} GB, {SPLITS_S:g} s",
        met=growth <= GROWTH and peak <= PEAK_GB and seconds <= SPLITS_S,
    )


def _run(what: str, argument: str, folder: Path) -> Any:
    with TemporaryDirectory(dir=folder) as own:
        return measured(Path(__file__), "--run", what, argument, own)


def main() -> None:
    """One part of one size, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="images, the smallest first")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        what, argument, folder = arguments.run
        work = {"whole": lambda: whole(Path(argument), Path(folder)), "index": lambda: index(int(argument), Path(folder))}
        print(json.dumps(work.get(what, lambda: splits(0, Path(folder)))()))
    else:
        compare(tuple(arguments.sizes))


if __name__ == "__main__":
    main()
