"""Detection on a CPU beside its two peers: the same weights on the same pictures, CPU seconds a picture, and whether the boxes are the same.

Peers, both plainly: (a) MegaDetector Lite in torch, a picture at a time: decode, resize, pad, forward, yolox's own
suppression; (b) `ultralytics` predict with its defaults (size 640, confidence 0.25), given paths, for a YOLO11n checkpoint.
ultralytics' overlap threshold is set to ours, so that the boxes can be compared. Each side runs in processes of its own,
several times in turn; what is counted is the CPU time from the first picture to the last, after loading and one picture
to warm up; ours is the whole step: bytes from the store, checked, answers remembered, tables written; what the step takes for
one picture, which is mostly loading, is left out as the peers' loading is. Each has one busy thread, since two on neighbouring
cores slow each other down.

Without --checkpoint a YOLO11n that nobody trained is made: its scores are spread so that some places are certain. Without
--pictures 2048 x 1536 JPEGs of the drawn island are made.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

from measure import conclude, measured, show

from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet

IMAGES, ROUNDS, AIM = 128, 3, 1.5
SIZE = (2048, 1536)
CONFIDENCE, OVERLAP = 0.25, 0.45
Boxes = dict[str, list[list[float]]]


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=Path, help="folder of pictures instead of drawn ones")
    parser.add_argument("--checkpoint", type=Path, help="a YOLO checkpoint that finds animals")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        side, folder, checkpoint = asked.side
        print(json.dumps(SIDES[side](sorted(Path(folder).iterdir()), checkpoint)))
        return
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for path in gather(asked.images) if asked.images else drawn(Path(folder)):
            (images / f"{len(list(images.iterdir())):03}-{path.name}").symlink_to(path.absolute())
        checkpoint = asked.checkpoint or untrained(Path(folder) / "untrained.pt", sorted(images.iterdir()))
        compare(images, checkpoint)


def compare(images: Path, checkpoint: Path) -> None:
    """Both pairs, in turn, and the verdict."""
    best: dict[str, tuple[float, Boxes]] = {}
    for _ in range(ROUNDS):
        for side in SIDES:
            run = measured(
                Path(__file__), "--side", side, str(images), str(checkpoint), env=os.environ | {"OMP_NUM_THREADS": "1", "ANIML_WORKERS": "1"}
            )
            if side not in best or run.said["cpu"] < best[side][0]:
                best[side] = run.said["cpu"], run.said["boxes"]
    count = len(list(images.iterdir()))
    rows, met = [], True
    ratios = []
    for ours, peer in (("ours lite", "torch lite"), ("ours yolo", "ultralytics")):
        ratio = best[peer][0] / best[ours][0]
        missing, overlap, apart, boxes = agreement(best[peer][1], best[ours][1])
        rows.append((peer, 1e3 * best[peer][0] / count, 1e3 * best[ours][0] / count, ratio, boxes, missing, overlap, apart))
        met &= ratio >= AIM and missing == 0 and overlap >= 0.99 and apart <= 0.01 and boxes > 0
        ratios.append(ratio)
    columns = ("peer", "its ms a picture", "ours", "times", "boxes", "missing or new", "least IoU", "most apart")
    show(f"detection of {count} pictures on a CPU, best of {ROUNDS}", columns, rows)
    conclude("detections", figure=" and ".join(f"{r:.2f} x" for r in ratios), aim=f"at least {AIM} x, boxes the same", met=met)


def agreement(theirs: Boxes, ours: Boxes) -> tuple[int, float, float, int]:
    """Boxes without a partner of IoU 0.5, the least IoU and the largest difference of confidence of partners, and the number of boxes."""
    from animl_pipeline.steps.detections.iou import overlap

    missing, least, apart = 0, 1.0, 0.0
    for name, boxes in theirs.items():
        left = list(ours[name])
        for box in boxes:
            partner = max(left, key=lambda other: overlap(tuple(box[1:]), tuple(other[1:])), default=None)
            shared = overlap(tuple(box[1:]), tuple(partner[1:])) if partner else 0.0
            if partner is None or shared < 0.5:
                missing += 1
                continue
            left.remove(partner)
            least, apart = min(least, shared), max(apart, abs(box[0] - partner[0]))
        missing += len(left)
    return missing, least, apart, sum(map(len, theirs.values()))


# -- the sides ---------------------------------------------------------------------------------------------------------


def ours_lite(images: list[Path], _: str) -> dict[str, Any]:
    """The step with MegaDetector Lite."""
    return ours(images, "megadetector-lite")


def ours_yolo(images: list[Path], checkpoint: str) -> dict[str, Any]:
    """The step with the checkpoint."""
    return ours(images, checkpoint)


def ours(images: list[Path], detector: str) -> dict[str, Any]:
    """The step detections over labels without boxes."""
    import pandas as pd

    from animl_pipeline.config import DetectionsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.steps.detections import detect_animals, find_animals
    from animl_pipeline.storage.step_cache import StepOutput, open_store

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(store=folder)
        store = open_store(settings)
        rows = [
            {
                "source": "s", "image_id": p.name, "annotation_id": p.name, "class_id": "a", "label": "a", "ymin": float("nan"), "xmin": float("nan"),
                "ymax": float("nan"), "xmax": float("nan"), "location": "", "taken": "", "sequence": "", "blob": store.put_blob(p.read_bytes()),
                "bytes": p.stat().st_size, "width": 1, "height": 1, "file_name": p.name,
            }
            for p in images
        ]  # fmt: skip

        def step(some: list[dict[str, Any]]) -> tuple[Any, float]:
            def build(space: Any) -> StepOutput:
                write_parquet(space.out / "labels.parquet", pd.DataFrame(some))
                return StepOutput(Counts(kept=len(some)))

            labels = store.make(Step("labels", version=1), config={"rows": len(some)}, build=build)
            begun = cpu()
            made = detect_animals(labels, spec, store, settings)
            return made, cpu() - begun

        spec = DetectionsConfig(source="detector", detector=detector, confidence=CONFIDENCE)
        find_animals(images[0].read_bytes(), spec, settings)
        _, loading_and_one = step(rows[:1])
        made, all_others = step(rows)
        spent = (all_others - loading_and_one) * len(rows) / (len(rows) - 2)
        table = store.table(made, "detections.parquet")
    boxes: Boxes = {p.name: [] for p in images}
    for row in table.itertuples():
        boxes[row.image_id].append([row.confidence, row.ymin, row.xmin, row.ymax, row.xmax])
    return {"cpu": spent, "boxes": boxes}


def torch_lite(images: list[Path], _: str) -> dict[str, Any]:
    """Peer (a): the plain loop."""
    import numpy as np
    import torch
    from PIL import Image
    from yolox.models import YoloPafpn, YoloxHead, YoloxModule
    from yolox.utils.boxes import postprocess

    from animl_pipeline.config.settings import Settings
    from animl_pipeline.integrations.weights import fetch_weights

    network = YoloxModule(YoloPafpn(0.33, 0.375), YoloxHead(1, 0.375))
    weights = fetch_weights("megadetector-lite", Settings(), key="detections.detector")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["model"])
    network.eval()

    def found(path: Path) -> list[list[float]]:
        image = Image.open(path).convert("RGB")
        ratio = min(640 / image.width, 640 / image.height)
        width, height = round(image.width * ratio), round(image.height * ratio)
        canvas = np.zeros((640, 640, 3), np.float32)
        canvas[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        with torch.inference_mode():
            (rows,) = postprocess(network(torch.from_numpy(canvas.transpose(2, 0, 1)[None].copy())), 1, CONFIDENCE, OVERLAP)
        return [] if rows is None else [[r[4] * r[5], *clipped(r[1] / height, r[0] / width, r[3] / height, r[2] / width)] for r in rows.tolist()]

    return timed(found, images)


def ultralytics(images: list[Path], checkpoint: str) -> dict[str, Any]:
    """Peer (b): predict with its defaults."""
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.detections.ultralytics_detector import NAMES, import_ultralytics

    yolo, _ = import_ultralytics(Settings())
    model = yolo(checkpoint)

    def found(path: Path) -> list[list[float]]:
        (answer,) = model.predict(str(path), imgsz=640, conf=CONFIDENCE, iou=OVERLAP, device="cpu", verbose=False)
        rows = zip(answer.boxes.cls.tolist(), answer.boxes.conf.tolist(), answer.boxes.xyxyn.tolist(), strict=True)
        return [[confidence, top, left, bottom, right] for name, confidence, (left, top, right, bottom) in rows if answer.names[int(name)] in NAMES]

    return timed(found, images)


SIDES = {"torch lite": torch_lite, "ours lite": ours_lite, "ultralytics": ultralytics, "ours yolo": ours_yolo}


def timed(found: Any, images: list[Path]) -> dict[str, Any]:
    """CPU seconds of a loop over all pictures, and its boxes."""
    found(images[0])
    begun = cpu()
    boxes = {p.name: found(p) for p in images}
    return {"cpu": cpu() - begun, "boxes": boxes}


def clipped(*values: float) -> list[float]:
    """Values within 0-1."""
    return [min(max(v, 0.0), 1.0) for v in values]


def cpu() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# -- what they look at -------------------------------------------------------------------------------------------------


def gather(folder: Path) -> list[Path]:
    """Pictures in a folder and below."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})


def drawn(folder: Path, count: int = IMAGES) -> list[Path]:
    """Pictures of the drawn island, enlarged to a camera's size and grained, about 0.7 MB each."""
    import numpy as np
    from PIL import Image

    from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset

    write_synthetic_dataset(folder / "sample")
    chance = np.random.default_rng(0)
    paths = []
    for path in gather(folder / "sample" / "images"):
        try:
            image = Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        except OSError:  # the sample's own damaged picture
            continue
        grained = np.asarray(image, np.int16) + chance.integers(-5, 6, (SIZE[1], SIZE[0], 1), np.int16)
        buffer = io.BytesIO()
        Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        paths.append(folder / f"large-{len(paths)}.jpg")
        paths[-1].write_bytes(buffer.getvalue())
        if len(paths) == count:
            break
    return paths


def untrained(path: Path, images: list[Path]) -> Path:
    """A YOLO11n that nobody trained, its normalisation fitted to the pictures and its scores spread so that some places are certain."""
    import numpy as np
    import torch
    from PIL import Image

    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.detections.ultralytics_detector import import_ultralytics

    yolo, _ = import_ultralytics(Settings())
    torch.manual_seed(0)
    model = yolo("yolo11n.yaml")
    model.model.names = {i: ("animal", "person", "vehicle", f"thing {i}")[i % 4] for i in range(len(model.model.names))}
    network = model.model
    some = images[:: max(1, len(images) // 8)]
    views = [np.asarray(Image.open(p).convert("RGB").resize((640, 480)), np.float32).transpose(2, 0, 1) / 255 for p in some]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over what it sees now, or nothing of a picture reaches the end
    with torch.no_grad():
        network.train()(torch.from_numpy(np.stack(views)))
        logits = network.eval()(torch.from_numpy(np.stack(views)))[1]["scores"].amax(1).flatten()
    spread = 1.0 / float(logits.std())
    certain = float(logits.topk(16).values[-1])
    for layer in network.model[-1].cv3:
        last = layer[-1]
        last.weight.data *= spread
        last.bias.data = (last.bias.data - certain) * spread - 1.0986  # about two places a picture get a probability of 0.25
    model.save(path)
    return path


if __name__ == "__main__":
    main()
