"""Detection on a CPU compared with two peers: the same weights and images, CPU seconds per image, and whether the boxes are the same.

The peers: (a) MegaDetector Lite in a plain torch loop (decode, resize, pad, forward pass, yolox's NMS); (b) `ultralytics` predict with its
defaults (size 640, confidence 0.25), which gets paths, for a YOLO11n checkpoint. ultralytics' NMS threshold is set to ours, so that the boxes
can be compared. Each side runs in its own process, several times in turn. The CPU time is counted from the first image to the last, after
loading and one warm-up image. Ours is the whole step: blobs read and checked, the index written, tables written; the step for one image, which
is mostly loading, is subtracted. Each side uses one thread, because two on neighbouring cores slow each other down.

Without --checkpoint an untrained YOLO11n is made, with scores spread so that some are high. Without --images it uses synthetic JPEGs of
2048 x 1536 pixels.
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

COUNT, ROUNDS = 128, 3
AIMS = {"torch lite": 1.8, "ultralytics": 1.5}
SIZE = (2048, 1536)
CONFIDENCE, NMS_IOU = 0.25, 0.45
Boxes = dict[str, list[list[float]]]
"""File name → [confidence, ymin, xmin, ymax, xmax] of each box."""


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of images instead of synthetic ones")
    parser.add_argument("--checkpoint", type=Path, help="a YOLO checkpoint that finds animals")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, checkpoint = arguments.side
        print(json.dumps(SIDES[side](sorted(Path(folder).iterdir()), checkpoint)))
        return
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for number, path in enumerate(find_images(arguments.images) if arguments.images else draw_images(Path(folder), COUNT)):
            (images / f"{number:03}-{path.name}").symlink_to(path.absolute())
        checkpoint = arguments.checkpoint or build_checkpoint(Path(folder) / "untrained.pt", sorted(images.iterdir()))
        compare(images, checkpoint)


def compare(images: Path, checkpoint: Path) -> None:
    """Run all sides in turn, and print the best of several rounds."""
    best: dict[str, tuple[float, Boxes]] = {}
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "ANIML_WORKERS": "1"}
    for _ in range(ROUNDS):
        for side in SIDES:
            run = measured(Path(__file__), "--side", side, str(images), str(checkpoint), env=one_thread)
            if side not in best or run.said["cpu"] < best[side][0]:
                best[side] = run.said["cpu"], run.said["boxes"]
    count = len(list(images.iterdir()))
    rows, ratios, met = [], [], True
    for ours, peer in (("ours lite", "torch lite"), ("ours yolo", "ultralytics")):
        ratio = best[peer][0] / best[ours][0]
        unmatched, lowest_iou, largest_difference, boxes = compare_boxes(best[peer][1], best[ours][1])
        rows.append((peer, 1e3 * best[peer][0] / count, 1e3 * best[ours][0] / count, ratio, boxes, unmatched, lowest_iou, largest_difference))
        met &= ratio >= AIMS[peer] and unmatched == 0 and lowest_iou >= 0.99 and largest_difference <= 0.01 and boxes > 0
        ratios.append(ratio)
    columns = ("peer", "its ms per image", "ours", "times", "boxes", "unmatched", "lowest IoU", "largest difference of confidence")
    show(f"detection of {count} images on a CPU, best of {ROUNDS}", columns, rows)
    conclude(
        "detections",
        figure=" and ".join(f"{r:.2f} x" for r in ratios),
        aim=f"at least {' and '.join(f'{a} x' for a in AIMS.values())}, boxes the same",
        met=met,
    )


def compare_boxes(theirs: Boxes, ours: Boxes) -> tuple[int, float, float, int]:
    """Boxes without a partner of IoU 0.5, the lowest IoU and largest difference of confidence of partners, and the number of boxes."""
    from animl_pipeline.steps.detections.box_overlap import iou

    unmatched, lowest_iou, largest_difference = 0, 1.0, 0.0
    for name, boxes in theirs.items():
        rest = list(ours[name])
        for box in boxes:
            partner = max(rest, key=lambda other: iou(box[1:], other[1:]), default=None)
            overlap = iou(box[1:], partner[1:]) if partner else 0.0
            if partner is None or overlap < 0.5:
                unmatched += 1
                continue
            rest.remove(partner)
            lowest_iou, largest_difference = min(lowest_iou, overlap), max(largest_difference, abs(box[0] - partner[0]))
        unmatched += len(rest)
    return unmatched, lowest_iou, largest_difference, sum(map(len, theirs.values()))


# -- the sides ---------------------------------------------------------------------------------------------------------


def ours_lite(images: list[Path], _: str) -> dict[str, Any]:
    """The step with MegaDetector Lite."""
    return ours(images, "megadetector-lite")


def ours(images: list[Path], detector: str) -> dict[str, Any]:
    """The step detections for labels without boxes."""
    from animl_pipeline.config import DetectionsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.detections import detect_animals, find_animals
    from animl_pipeline.storage.store import open_store

    config = DetectionsConfig(source="detector", detector=detector, confidence=CONFIDENCE)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(store=folder)
        store = open_store(settings)
        rows = [{"image_id": p.name, "blob": store.put_blob(p.read_bytes()), "bytes": p.stat().st_size} for p in images]
        find_animals(images[0].read_bytes(), config, settings)
        seconds = []
        for some in (rows[:1], rows):
            labels = make_labels(store, some)
            start = cpu_seconds()
            made = detect_animals(labels, config, store, settings)
            seconds.append(cpu_seconds() - start)
        table = store.table(made, "detections.parquet")
    boxes: Boxes = {p.name: [] for p in images}
    for row in table.itertuples():
        boxes[row.image_id].append([row.confidence, row.ymin, row.xmin, row.ymax, row.xmax])
    return {"cpu": (seconds[1] - seconds[0]) * len(rows) / (len(rows) - 2), "boxes": boxes}  # the second run has two images fewer


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

    def detect(path: Path) -> list[list[float]]:
        image = Image.open(path).convert("RGB")
        ratio = min(640 / image.width, 640 / image.height)
        width, height = round(image.width * ratio), round(image.height * ratio)
        canvas = np.zeros((640, 640, 3), np.float32)
        canvas[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        with torch.inference_mode():
            (rows,) = postprocess(network(torch.from_numpy(canvas.transpose(2, 0, 1)[None].copy())), 1, CONFIDENCE, NMS_IOU)
        return [] if rows is None else [[r[4] * r[5], *clip(r[1] / height, r[0] / width, r[3] / height, r[2] / width)] for r in rows.tolist()]

    return measure_loop(detect, images)


def ultralytics(images: list[Path], checkpoint: str) -> dict[str, Any]:
    """Peer (b): predict with its defaults."""
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.detections.detector import CATEGORY_OF_NAME
    from animl_pipeline.steps.detections.ultralytics_detector import import_ultralytics

    yolo, _ = import_ultralytics(Settings())
    model = yolo(checkpoint)

    def detect(path: Path) -> list[list[float]]:
        (result,) = model.predict(str(path), imgsz=640, conf=CONFIDENCE, iou=NMS_IOU, device="cpu", verbose=False)
        rows = zip(result.boxes.cls.tolist(), result.boxes.conf.tolist(), result.boxes.xyxyn.tolist(), strict=True)
        return [[conf, top, left, bottom, right] for i, conf, (left, top, right, bottom) in rows if result.names[int(i)] in CATEGORY_OF_NAME]

    return measure_loop(detect, images)


SIDES = {"torch lite": torch_lite, "ours lite": ours_lite, "ultralytics": ultralytics, "ours yolo": ours}


def measure_loop(detect: Any, images: list[Path]) -> dict[str, Any]:
    """CPU seconds of a loop over all images, and their boxes."""
    detect(images[0])
    start = cpu_seconds()
    boxes = {p.name: detect(p) for p in images}
    return {"cpu": cpu_seconds() - start, "boxes": boxes}


def clip(*values: float) -> list[float]:
    """Values within 0-1."""
    return [min(max(v, 0.0), 1.0) for v in values]


def cpu_seconds() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# -- inputs ------------------------------------------------------------------------------------------------------------


def make_labels(store: Any, rows: list[dict[str, Any]]) -> Any:
    """An artifact of the step labels with these rows; other columns are empty, and boxes are NaN."""
    import pandas as pd

    from animl_pipeline.core.artifacts import Counts
    from animl_pipeline.core.step_declaration import Step
    from animl_pipeline.core.table_schemas import DROPPED_ANNOTATIONS, LABELS
    from animl_pipeline.core.tables import write_table
    from animl_pipeline.storage.store import StepOutput

    def build(space: Any) -> StepOutput:
        names = ("source", "annotation_id", "class_id", "label", "file_name")
        table = pd.DataFrame([dict.fromkeys(names, row["image_id"]) | row for row in rows])
        for column in LABELS.columns:
            if column.name not in table:
                table[column.name] = {"string": "", "int64": 1, "double": float("nan")}[column.type]
        write_table(space.out, LABELS, table[LABELS.names()])
        write_table(space.out, DROPPED_ANNOTATIONS, pd.DataFrame(columns=DROPPED_ANNOTATIONS.names()))
        return StepOutput(Counts(kept=len(rows)))

    return store.make(Step("labels", version=1), config={"images": [row["image_id"] for row in rows]}, build=build)


def find_images(folder: Path) -> list[Path]:
    """Images in a folder and below."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})


def draw_images(folder: Path, count: int) -> list[Path]:
    """Images of the synthetic data set, enlarged to a camera's size and with grain, about 0.7 MB each."""
    import numpy as np
    from PIL import Image

    from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset

    write_synthetic_dataset(folder / "synthetic")
    rng = np.random.default_rng(0)
    paths: list[Path] = []
    for path in find_images(folder / "synthetic"):
        try:
            image = Image.open(path).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        except OSError:  # the data set has a damaged image
            continue
        grained = np.asarray(image, np.int16) + rng.integers(-5, 6, (SIZE[1], SIZE[0], 1), np.int16)
        buffer = io.BytesIO()
        Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        paths.append(folder / f"large-{len(paths)}.jpg")
        paths[-1].write_bytes(buffer.getvalue())
        if len(paths) == count:
            break
    return paths


def build_checkpoint(path: Path, images: list[Path]) -> Path:
    """An untrained YOLO11n with normalisation that fits the images and scores that are spread, so that some are high."""
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
    pixels = [np.asarray(Image.open(p).convert("RGB").resize((640, 480)), np.float32).transpose(2, 0, 1) / 255 for p in some]
    inputs = torch.from_numpy(np.stack(pixels))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # use the plain mean of these images, or no signal reaches the last layer
    with torch.no_grad():
        network.train()(inputs)
        logits = network.eval()(inputs)[1]["scores"].amax(1).flatten()
    scale = 1.0 / float(logits.std())
    high = float(logits.topk(16).values[-1])
    for layer in network.model[-1].cv3:
        last = layer[-1]
        last.weight.data *= scale
        last.bias.data = (last.bias.data - high) * scale - 1.0986  # about two anchors per image get a probability of 0.25
    model.save(path)
    return path


if __name__ == "__main__":
    main()
