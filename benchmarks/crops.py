"""Crops beside the script in use, and what a second run after five per cent new pictures costs.

The script, restated plainly: decode the picture, for each box a square of its longer side that may reach past the frame,
`crop.save(path)` as JPEG at pillow's default quality and at the picture's own resolution. Ours cuts the very view that the
model and the endpoint see (bicubic, 224 px), keeps it without loss, and knows what it cut; what the picture looks like is
noted on the way, for finding copies. Both decode every picture once and wholly: by a third side, which does only that, one
sees what is left to anybody who does. The table of parts says where the time goes, the decoder's entropy part too (a decode
at an eighth of the size does little else).

The script leaves resizing to every epoch of the training. So what a training's epochs read is shown as well: the script's JPEGs
decoded and resized, ours decoded. The script has one thread, and so has ours.

The rerun is of the steps detections (MegaDetector Lite on pictures without a reviewed box, a fifth of them) and crops.
Pictures: 2048 x 1536 and 0.7 MB, 1.7 bits a pixel as cameras' own have, 1.3 boxes each; --pictures FOLDER --boxes FILE.json
({name: [[ymin, xmin, ymax, xmax]]}) for others. CPU seconds are of a loop in a process of its own after imports and one
picture; each picture comes several times, so that a run's fixed costs count as little as in a long one. Memory: of the whole process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detections import SIZE, cpu, gather
from measure import conclude, measured, out, show

from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet

COUNT, ROUNDS, SHARE = 84, 3, 0.05
RERUN_IMAGES = 420
"""At least, each as often as it takes: in fewer, loading the detector anew is more than a twentieth of the work."""
TIMES = 4
"""How often each picture comes, but in the rerun."""
GRAIN = 9
"""Grey levels of more grain in the drawn pictures, which makes them as dense as real ones."""
AIM, RERUN, MEMORY_MB = 1.6, 0.07, 400
EPOCHS = 10
"""Of a training: a plan's default."""
VIEW = 224
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""As every run of the pipeline has it."""


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=Path, help="folder of pictures instead of drawn ones")
    parser.add_argument("--boxes", type=Path, help="their boxes, as JSON")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        side, folder, boxes = asked.side
        print(json.dumps(SIDES[side](Path(folder), json.loads(Path(boxes).read_text()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if asked.images:
            compare(asked.images, asked.boxes)
        else:
            compare(*drawn(Path(folder)))


def compare(images: Path, boxes: Path) -> None:
    """All sides in turn, the best of several rounds, and the verdict."""
    best: dict[str, Any] = {}
    for number in range(ROUNDS):
        for side in SIDES:
            if number and side in {"rerun", "parts"}:
                continue
            workers = "64" if side == "ours, 64 threads" else "1"
            env = os.environ | {"OMP_NUM_THREADS": "1", "ANIML_WORKERS": workers} | ({} if side == "script" else ONE_HEAP)
            run = measured(Path(__file__), "--side", side, str(images), str(boxes), env=env)
            if side not in best or run.said["cpu"] < best[side]["cpu"]:
                best[side] = run.said | {"peak": run.peak_mb}
    rows = []
    for name in ("decoding alone", "script", "ours", "ours, 64 threads"):
        b = best[name]
        rows.append((name, b["images"], 1e3 * b["cpu"] / b["images"], 1e3 * b["epoch"] / b["images"], b["bytes"] // 1000, b["peak"]))
    show(f"crops, best of {ROUNDS}", ("side", "images", "ms a picture", "an epoch's reading", "kB a crop", "peak MB"), rows)
    show("by part", ("part", "ms a picture"), list(best["parts"]["ms"].items()))
    rerun = best["rerun"]
    share = rerun["again"] / rerun["cpu"]
    columns = ("first run, CPU s", "5 % new", "share")
    show("detections and crops, and again", columns, [(rerun["cpu"], rerun["again"], share)])
    script, ours = best["script"], best["ours"]
    bare, most = script["cpu"] / ours["cpu"], script["cpu"] / best["decoding alone"]["cpu"]
    trained = (script["cpu"] + EPOCHS * script["epoch"]) / (ours["cpu"] + EPOCHS * ours["epoch"])
    peak = max(best["ours"]["peak"], best["ours, 64 threads"]["peak"])
    figure = f"{bare:.2f} x the script, peak {peak:.0f} MB, rerun {100 * share:.1f} %"
    met = bare >= AIM and peak < MEMORY_MB and share <= RERUN
    out.print(f"who only decodes has {most:.2f} x the script; with {EPOCHS} epochs' reading ours has {trained:.2f} x")
    conclude("crops", figure=figure, aim=f"at least {AIM} x, below {MEMORY_MB} MB, at most {100 * RERUN:.0f} %", met=met)


# -- the sides ---------------------------------------------------------------------------------------------------------


def script(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """The script in use."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as target:

        def cut_all(name: str, time: int = 0) -> None:
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
        cut_all(names[0])
        begun = cpu()
        for time in range(TIMES):
            for name in names:
                cut_all(name, time)
        spent = cpu() - begun
        crops = sorted(Path(target).iterdir())
        begun = cpu()
        for crop in crops:
            Image.open(crop).resize((VIEW, VIEW), Image.Resampling.BICUBIC).load()
        images = TIMES * len(names)
        return {"cpu": spent, "epoch": cpu() - begun, "images": images, "bytes": sum(c.stat().st_size for c in crops) // len(crops)}


def decoding(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """Pillow's decoding and nothing else, for the floor."""
    from PIL import Image

    def decode(name: str) -> None:
        with Image.open(folder / name) as image:
            image.load()

    return {"cpu": TIMES * _cpu_of(decode, list(boxes)), "epoch": 0.0, "images": TIMES * len(boxes), "bytes": 0}


def parts(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds a picture that the parts of cutting take, ours and the script's."""
    from PIL import Image

    from animl_pipeline.core.boxes import Box
    from animl_pipeline.core.imaging import extract_crop, open_image, square_around
    from animl_pipeline.core.model_card import ModelInput
    from animl_pipeline.steps.crops.extract import LOSSLESS
    from animl_pipeline.steps.crops.perceptual_hash import compute_phash

    data = {name: (folder / name).read_bytes() for name in boxes}
    views = {name: [extract_crop(open_image(d), Box.of(b), ModelInput(size=VIEW)) for b in boxes[name]] for name, d in data.items()}
    image = {"": open_image(next(iter(data.values())))}

    def entropy(name: str) -> None:
        small = Image.open(io.BytesIO(data[name]))
        small.draft(None, (small.width // 8, small.height // 8))
        small.load()

    def views_of(name: str) -> None:
        for box in boxes[name]:
            extract_crop(image[""], Box.of(box), ModelInput(size=VIEW))

    def encode(name: str) -> None:
        for model_input in views[name]:
            model_input.save(io.BytesIO(), **LOSSLESS)

    def save(name: str) -> None:
        for box in boxes[name]:
            left, top, side = square_around(Box.of(box), *image[""].size)
            image[""].crop((left, top, left + side, top + side)).save(io.BytesIO(), "JPEG")

    work = {
        "decoding": lambda name: open_image(data[name]),
        "  of that, entropy": entropy,
        "ours: squares to 224 px": views_of,
        "ours: without loss": encode,
        "ours: likeness": lambda _: compute_phash(image[""]),
        "script: squares as JPEG": save,
    }
    return {"cpu": 0.0, "ms": {what: 1e3 * _cpu_of(do, list(boxes)) / len(boxes) for what, do in work.items()}}


def _cpu_of(do: Callable[[str], object], names: list[str]) -> float:
    """CPU seconds for all names, the best of several times."""
    do(names[0])
    best = float("inf")
    for _ in range(ROUNDS):
        begun = cpu()
        for name in names:
            do(name)
        best = min(best, cpu() - begun)
    return best


def ours(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """The step crops."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as location:
        steps = Steps(Path(location), folder)
        steps.run(dict(list(boxes.items())[:1]), all_reviewed=True)
        boxes = steps.more(boxes, range(1, TIMES + 1))
        labels, detections = steps.inputs(boxes, all_reviewed=True)
        begun = cpu()  # the steps that write the inputs are not counted
        crops = steps.cut(labels, detections)
        spent = cpu() - begun
        blobs = steps.store.table(crops, "crops.parquet")["blob"]
        begun = cpu()
        sizes = []
        for blob in blobs:
            data = steps.store.blob(blob)
            sizes.append(len(data))
            Image.open(io.BytesIO(data)).load()
        return {"cpu": spent, "epoch": cpu() - begun, "images": len(boxes), "bytes": sum(sizes) // len(sizes)}


def rerun(folder: Path, boxes: dict[str, Any]) -> dict[str, Any]:
    """Detections and crops on nineteen twentieths of the pictures, then on all."""
    with tempfile.TemporaryDirectory() as location:
        steps = Steps(Path(location), folder)
        boxes = steps.more(boxes, range(-(-RERUN_IMAGES // len(boxes))))
        old = dict(list(boxes.items())[: round(len(boxes) / (1 + SHARE))])
        begun = cpu()
        steps.run(old)
        first = cpu() - begun
        begun = cpu()
        steps.run(boxes)
        return {"cpu": first, "again": cpu() - begun}


class Steps:
    """A store with pictures, and the steps over some of them."""

    def __init__(self, location: Path, images: Path) -> None:
        from animl_pipeline.config.settings import Settings
        from animl_pipeline.storage.step_cache import open_store

        self.settings = Settings(store=str(location / "store"))
        self.store = open_store(self.settings)
        self.blobs = {p.name: (self.store.put_blob(p.read_bytes()), p.stat().st_size) for p in gather(images)}
        self.made = 0

    def more(self, boxes: dict[str, Any], copies: Iterable[int]) -> dict[str, Any]:
        """Each picture again under other names, with bytes after its end that no decoder reads: other content, the same work."""
        more = {}
        for copy in copies:
            for name, corners in boxes.items():
                data = self.store.blob(self.blobs[name][0]) + b"\0" * copy
                more[f"{copy}-{name}"] = corners
                self.blobs[f"{copy}-{name}"] = self.store.put_blob(data), len(data)
        return more

    def run(self, boxes: dict[str, Any], *, all_reviewed: bool = False) -> None:
        """Labels (not counted as work of these steps, a few milliseconds), detections, crops."""
        self.cut(*self.inputs(boxes, all_reviewed=all_reviewed))

    def inputs(self, boxes: dict[str, Any], *, all_reviewed: bool) -> tuple[Any, Any]:
        """The steps before crops; a fifth of the pictures has no reviewed box unless all shall have them."""
        import pandas as pd

        from animl_pipeline.config import DetectionsConfig
        from animl_pipeline.core.artifacts import Counts
        from animl_pipeline.steps.detections import detect_animals
        from animl_pipeline.storage.step_cache import StepOutput

        nan = float("nan")
        rows = []
        for n, (name, corners) in enumerate(boxes.items()):
            blob, size = self.blobs[name]
            for i, box in enumerate(corners if all_reviewed or n % 5 else [[nan] * 4]):
                rows.append(
                    {"source": "s", "image_id": name, "annotation_id": f"{name}{i}", "class_id": "a", "label": "a", "ymin": box[0], "xmin": box[1],
                     "ymax": box[2], "xmax": box[3], "location": f"s/{n % 20}", "taken": "", "sequence": "", "blob": blob, "bytes": size,
                     "width": SIZE[0], "height": SIZE[1], "file_name": name}
                )  # fmt: skip
        self.made += 1

        def build(space: Any) -> StepOutput:
            write_parquet(space.out / "labels.parquet", pd.DataFrame(rows))
            return StepOutput(Counts(kept=len(rows)))

        labels = self.store.make(Step("labels", version=1), config={"made": self.made}, build=build)
        spec = DetectionsConfig(source="annotations" if all_reviewed else "auto")
        return labels, detect_animals(labels, spec, self.store, self.settings)

    def extract_crop(self, labels: Any, detections: Any) -> Any:
        """The step crops."""
        from animl_pipeline.config import CropsConfig
        from animl_pipeline.core.model_card import ModelInput
        from animl_pipeline.steps.crops import extract_crops

        return extract_crops(labels, detections, CropsConfig(), ModelInput(size=VIEW), self.store, self.settings)


SIDES = {"decoding alone": decoding, "parts": parts, "script": script, "ours": ours, "ours, 64 threads": ours, "rerun": rerun}


# -- what they look at -------------------------------------------------------------------------------------------------


def drawn(folder: Path) -> tuple[Path, Path]:
    """Pictures of the drawn island at a camera's size and density, and boxes of a quarter of their width on the mean, 1.3 a picture."""
    import numpy as np
    from detections import drawn as draw
    from PIL import Image

    chance = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    boxes: dict[str, list[list[float]]] = {}
    for path in draw(folder, COUNT):
        pixels = np.asarray(Image.open(path), np.int16) + chance.integers(-GRAIN, GRAIN + 1, (SIZE[1], SIZE[0], 1), np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / path.name, quality=85)
        path.unlink()
        boxes[path.name] = []
        for _ in range(1 + int(chance.random() < 0.3)):
            width = float(np.clip(chance.lognormal(np.log(0.25), 0.4), 0.05, 0.8))
            height = min(0.9, width * float(chance.uniform(0.8, 1.6)))
            left, top = chance.uniform(0, 1 - width), chance.uniform(0, 1 - height)
            boxes[path.name].append([round(float(v), 4) for v in (top, left, top + height, left + width)])
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return images, folder / "boxes.json"


if __name__ == "__main__":
    main()
