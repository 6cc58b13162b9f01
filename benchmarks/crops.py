"""Cropping compared with a floor and with a plain script, and the cost of a second run with five per cent new images.

The floor is a single loop that does what this step promises and nothing else: read the file, decode it, hash its pixels to find copies, make
the same crops, encode them without loss, and hash them. It stores nothing and keeps no record. The script: decode the image; for each box crop
a square of its longer side that may reach beyond the image; `crop.save(path)` as JPEG with Pillow's default quality and at the image's own
resolution. Ours makes the model's input (bicubic, 224 px), stores it without loss, records what exists, and computes a perceptual hash of the
image. All decode every image once; one more side only decodes. The table of parts shows where the time goes, also the decoder's entropy part
(a decode at an eighth of the size does little else).

The script leaves resizing to every epoch of training. So the reading of a training's epochs is shown, too: the script's JPEGs are decoded and
resized, ours are decoded. Both use one thread.

The second run is of the steps detections (MegaDetector Lite for images without a reviewed box, a fifth of them) and crops. Images: 2048 x 1536
pixels and 0.7 MB, 1.7 bits per pixel as cameras write them, 1.3 boxes each; --images FOLDER --boxes FILE.json ({name: [[ymin, xmin, ymax,
xmax]]}) for others. CPU seconds are of a loop in its own process after imports and one image; each image comes several times, so that fixed
costs count as little as in a long run. Memory is of the whole process.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detections import SIZE, cpu_seconds, draw_images, find_images, make_labels
from measure import conclude, measured, out, show

COUNT, ROUNDS, NEW_SHARE = 84, 3, 0.05
SECOND_RUN_IMAGES = 420
"""With fewer images, loading the detector again is more than a twentieth of the work."""
REPEATS = 4
"""How often each image comes, except in the second run."""
GRAIN = 9
"""Grey levels of additional grain, which makes the synthetic JPEGs as large as real ones."""
MAX_OF_FLOOR, MAX_SECOND_RUN, MAX_MEMORY_MB = 1.35, 0.07, 400
EPOCHS = 10
"""Of a training: the plan's default."""
CROP_SIZE = 224
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""As every run of the pipeline sets it."""


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of images instead of synthetic ones")
    parser.add_argument("--boxes", type=Path, help="their boxes, as JSON")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, boxes = arguments.side
        print(json.dumps(SIDES[side](Path(folder), json.loads(Path(boxes).read_text()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images:
            compare(arguments.images, arguments.boxes)
        else:
            compare(*draw_boxed_images(Path(folder)))


def compare(images: Path, boxes: Path) -> None:
    """Run all sides in turn, and print the best of several rounds."""
    best: dict[str, Any] = {}
    for number in range(ROUNDS):
        for side in SIDES:
            if number and side in {"second run", "parts"}:
                continue
            workers = "64" if side == "ours, 64 threads" else "1"
            env = os.environ | {"OMP_NUM_THREADS": "1", "ANIML_WORKERS": workers} | ({} if side == "script" else ONE_ARENA)
            run = measured(Path(__file__), "--side", side, str(images), str(boxes), env=env)
            if side not in best or run.said["cpu"] < best[side]["cpu"]:
                best[side] = run.said | {"peak": run.peak_mb}
    rows = []
    for name in ("decoding alone", "floor", "script", "ours", "ours, 64 threads"):
        b = best[name]
        rows.append((name, b["images"], 1e3 * b["cpu"] / b["images"], 1e3 * b["epoch"] / b["images"], b["bytes"] // 1000, b["peak"]))
    show(f"crops, best of {ROUNDS}", ("side", "images", "ms per image", "ms to read in an epoch", "kB per crop", "peak MB"), rows)
    show("by part", ("part", "ms per image"), list(best["parts"]["ms"].items()))
    second = best["second run"]
    share = second["again"] / second["cpu"]
    columns = ("first run, CPU s", "5 % new", "share")
    show("detections and crops, twice", columns, [(second["cpu"], second["again"], share)])
    script, ours = best["script"], best["ours"]
    of_floor = ours["cpu"] / best["floor"]["cpu"]
    trained = (script["cpu"] + EPOCHS * script["epoch"]) / (ours["cpu"] + EPOCHS * ours["epoch"])
    peak = max(best["ours"]["peak"], best["ours, 64 threads"]["peak"])
    figure = f"{of_floor:.2f} x the floor, peak {peak:.0f} MB, second run {100 * share:.1f} %"
    met = of_floor <= MAX_OF_FLOOR and peak < MAX_MEMORY_MB and share <= MAX_SECOND_RUN
    out.print(f"the script takes {script['cpu'] / ours['cpu']:.2f} x ours, with the reading of {EPOCHS} epochs {trained:.2f} x")
    conclude("crops", figure=figure, aim=f"at most {MAX_OF_FLOOR} x, below {MAX_MEMORY_MB} MB, at most {100 * MAX_SECOND_RUN:.0f} %", met=met)


# -- the sides ---------------------------------------------------------------------------------------------------------


def script(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """The script."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as target:

        def crop_all(name: str, time: int = 0) -> None:
            with Image.open(folder / name) as image:
                image.load()
            for i, (top, left, bottom, right) in enumerate(boxes[name]):
                x, y = left * image.width, top * image.height
                width, height = (right - left) * image.width, (bottom - top) * image.height
                side = int(max(width, height))
                x = max(0, min(x - int((side - width) / 2), image.width - width))
                y = max(0, min(y - int((side - height) / 2), image.height - height))
                image.crop((int(x), int(y), int(x) + side, int(y) + side)).save(Path(target) / f"{time}-{name}___crop{i}.jpg")

        names = sorted(boxes)
        crop_all(names[0])
        start = cpu_seconds()
        for time in range(REPEATS):
            for name in names:
                crop_all(name, time)
        spent = cpu_seconds() - start
        crops = sorted(Path(target).iterdir())
        start = cpu_seconds()
        for crop in crops:
            Image.open(crop).resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC).load()
        images = REPEATS * len(names)
        return {"cpu": spent, "epoch": cpu_seconds() - start, "images": images, "bytes": sum(c.stat().st_size for c in crops) // len(crops)}


def decoding(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """Only decode."""
    from PIL import Image

    def decode(name: str) -> None:
        with Image.open(folder / name) as image:
            image.load()

    return {"cpu": REPEATS * _best_cpu_seconds(decode, list(boxes)), "epoch": 0.0, "images": REPEATS * len(boxes), "bytes": 0}


def floor(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """The least that this step's promise needs, in one loop."""
    from animl_pipeline.core.box_type import Box
    from animl_pipeline.core.decode_image import open_image
    from animl_pipeline.core.model_card import ModelInput
    from animl_pipeline.core.model_input import extract_crop
    from animl_pipeline.steps.crops.extract import LOSSLESS, compute_phash

    size, sizes = ModelInput(size=CROP_SIZE), []

    def crop_all(name: str) -> None:
        image = open_image((folder / name).read_bytes())
        compute_phash(image)
        for box in boxes[name]:
            encoded = io.BytesIO()
            extract_crop(image, Box.of(box), size).save(encoded, **LOSSLESS)
            hashlib.sha256(encoded.getvalue()).digest()
            sizes.append(encoded.tell())

    spent = REPEATS * _best_cpu_seconds(crop_all, list(boxes))
    return {"cpu": spent, "epoch": 0.0, "images": REPEATS * len(boxes), "bytes": sum(sizes) // len(sizes)}


def parts(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds per image of each part of the work, ours and the script's."""
    from PIL import Image

    from animl_pipeline.core.box_type import Box
    from animl_pipeline.core.decode_image import open_image
    from animl_pipeline.core.model_card import ModelInput
    from animl_pipeline.core.model_input import extract_crop, square_around
    from animl_pipeline.steps.crops.extract import LOSSLESS, compute_phash

    data = {name: (folder / name).read_bytes() for name in boxes}
    crops = {name: [extract_crop(open_image(d), Box.of(b), ModelInput(size=CROP_SIZE)) for b in boxes[name]] for name, d in data.items()}
    image = {"": open_image(next(iter(data.values())))}

    def entropy(name: str) -> None:
        small = Image.open(io.BytesIO(data[name]))
        small.draft(None, (small.width // 8, small.height // 8))
        small.load()

    def crop_boxes(name: str) -> None:
        for box in boxes[name]:
            extract_crop(image[""], Box.of(box), ModelInput(size=CROP_SIZE))

    def encode(name: str) -> None:
        for crop in crops[name]:
            crop.save(io.BytesIO(), **LOSSLESS)

    def save(name: str) -> None:
        for box in boxes[name]:
            left, top, side = square_around(Box.of(box), *image[""].size)
            image[""].crop((left, top, left + side, top + side)).save(io.BytesIO(), "JPEG")

    work = {
        "decoding": lambda name: open_image(data[name]),
        "  of that, entropy": entropy,
        "ours: squares to 224 px": crop_boxes,
        "ours: lossless WebP": encode,
        "ours: perceptual hash": lambda _: compute_phash(image[""]),
        "script: squares as JPEG": save,
    }
    return {"cpu": 0.0, "ms": {what: 1e3 * _best_cpu_seconds(do, list(boxes)) / len(boxes) for what, do in work.items()}}


def _best_cpu_seconds(do: Callable[[str], object], names: list[str]) -> float:
    """CPU seconds for all images, the best of several rounds."""
    do(names[0])
    best = float("inf")
    for _ in range(ROUNDS):
        start = cpu_seconds()
        for name in names:
            do(name)
        best = min(best, cpu_seconds() - start)
    return best


def ours(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """The step crops."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as location:
        steps = Steps(Path(location), folder)
        steps.run(dict(list(boxes.items())[:1]), all_reviewed=True)
        boxes = steps.repeat(boxes, range(1, REPEATS + 1))
        labels, detections = steps.inputs(boxes, all_reviewed=True)
        start = cpu_seconds()  # without the steps that write the inputs
        crops = steps.crop(labels, detections)
        spent = cpu_seconds() - start
        blobs = steps.store.table(crops, "crops.parquet")["blob"]
        start = cpu_seconds()
        sizes = []
        for blob in blobs:
            data = steps.store.blob(blob)
            sizes.append(len(data))
            Image.open(io.BytesIO(data)).load()
        return {"cpu": spent, "epoch": cpu_seconds() - start, "images": len(boxes), "bytes": sum(sizes) // len(sizes)}


def second_run(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """Detections and crops of nineteen twentieths of the images, then of all."""
    with tempfile.TemporaryDirectory() as location:
        steps = Steps(Path(location), folder)
        boxes = steps.repeat(boxes, range(-(-SECOND_RUN_IMAGES // len(boxes))))
        old = dict(list(boxes.items())[: round(len(boxes) / (1 + NEW_SHARE))])
        start = cpu_seconds()
        steps.run(old)
        first = cpu_seconds() - start
        start = cpu_seconds()
        steps.run(boxes)
        return {"cpu": first, "again": cpu_seconds() - start}


class Steps:
    """A store with images, and the steps for some of them."""

    def __init__(self, location: Path, images: Path) -> None:
        from animl_pipeline.config.settings import Settings
        from animl_pipeline.storage.store import open_store

        self.settings = Settings(store=str(location / "store"))
        self.store = open_store(self.settings)
        self.blobs = {p.name: (self.store.put_blob(p.read_bytes()), p.stat().st_size) for p in find_images(images)}

    def repeat(self, boxes: dict[str, Any], copies: Iterable[int]) -> dict[str, Any]:
        """Each image again under other names, with bytes after its end that no decoder reads: other content, the same work."""
        repeated = {}
        for copy in copies:
            for name, corners in boxes.items():
                data = self.store.blob(self.blobs[name][0]) + b"\0" * copy
                repeated[f"{copy}-{name}"] = corners
                self.blobs[f"{copy}-{name}"] = self.store.put_blob(data), len(data)
        return repeated

    def run(self, boxes: dict[str, Any], *, all_reviewed: bool = False) -> None:
        """Run detections and crops."""
        self.crop(*self.inputs(boxes, all_reviewed=all_reviewed))

    def inputs(self, boxes: dict[str, Any], *, all_reviewed: bool) -> tuple[Any, Any]:
        """The artifacts before crops. Unless all boxes are reviewed, a fifth of the images has none."""
        from animl_pipeline.config import DetectionsConfig
        from animl_pipeline.steps.detections import detect_animals

        nan = float("nan")
        rows = []
        for n, (name, corners) in enumerate(boxes.items()):
            blob, size = self.blobs[name]
            for i, box in enumerate(corners if all_reviewed or n % 5 else [[nan] * 4]):
                rows.append(
                    {"source": "s", "image_id": name, "annotation_id": f"{name}{i}", "class_id": "a", "label": "a", "location": f"s/{n % 20}",
                     "ymin": box[0], "xmin": box[1], "ymax": box[2], "xmax": box[3], "blob": blob, "bytes": size, "width": SIZE[0], "height": SIZE[1]}
                )  # fmt: skip
        labels = make_labels(self.store, rows)
        config = DetectionsConfig(source="annotations" if all_reviewed else "auto")
        return labels, detect_animals(labels, config, self.store, self.settings)

    def crop(self, labels: Any, detections: Any) -> Any:
        """The step crops."""
        from animl_pipeline.config import CropsConfig
        from animl_pipeline.core.model_card import ModelInput
        from animl_pipeline.steps.crops import extract_crops

        return extract_crops(labels, detections, CropsConfig(), ModelInput(size=CROP_SIZE), self.store, self.settings)


SIDES = {
    "decoding alone": decoding, "parts": parts, "floor": floor, "script": script,
    "ours": ours, "ours, 64 threads": ours, "second run": second_run,
}  # fmt: skip


# -- inputs -------------------------------------------------------------------------------------------------


def draw_boxed_images(folder: Path) -> tuple[Path, Path]:
    """Synthetic images with the size and bit rate of a camera's, and boxes of a quarter of their width on average, 1.3 per image."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    boxes: dict[str, list[list[float]]] = {}
    for path in draw_images(folder, COUNT):
        pixels = np.asarray(Image.open(path), np.int16) + rng.integers(-GRAIN, GRAIN + 1, (SIZE[1], SIZE[0], 1), np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / path.name, quality=85)
        path.unlink()
        boxes[path.name] = []
        for _ in range(1 + int(rng.random() < 0.3)):
            width = float(np.clip(rng.lognormal(np.log(0.25), 0.4), 0.05, 0.8))
            height = min(0.9, width * float(rng.uniform(0.8, 1.6)))
            left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            boxes[path.name].append([round(float(v), 4) for v in (top, left, top + height, left + width)])
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return images, folder / "boxes.json"


if __name__ == "__main__":
    main()
