"""Whether this machine's processor gains by bfloat16 in detection, and whether the boxes stay as good: ONNX Runtime beside OpenVINO's CPU runtime.

    pip install openvino
    ANIML_DATA=FOLDER python benchmarks/bfloat16.py [--images 330]

FOLDER holds folders with a cct.json, such as the real images of benchmarks/recipes.py. MegaDetector Lite at 640 px, one thread.
Speed: CPU ms of the network for an image, several rounds in turn. Boxes: recall and precision at IoU 0.5 on images with reviewed boxes, and
how many empty images get a box, at confidence 0.1, 0.25 and 0.5. The product has no such backend; this shows where one would pay.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measure import conclude, show
from numpy.typing import NDArray

IMAGES, ROUNDS, FASTEST_FIRST = 330, 5, 1.2
CONFIDENCES = (0.1, 0.25, 0.5)
MOST_LOST = 0.005
"""Of recall and precision, at each confidence."""
Forward = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


class Photo(NamedTuple):
    """A file, and its reviewed boxes as ymin, xmin, ymax, xmax; none where people saw that it is empty."""

    path: Path
    boxes: list[list[float]]


def main() -> None:
    """Speed and boxes of each runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, help="with boxes, and half as many empty ones")
    count = parser.parse_args().images
    network = exported_network()
    runtimes = {"ONNX Runtime": onnxruntime(network), "OpenVINO, single": openvino(network, "f32"), "OpenVINO, bfloat16": openvino(network, "bf16")}
    pixels = np.random.default_rng(0).integers(0, 255, (1, 640, 640, 3)).astype(np.uint8)
    ms = {name: [cpu_ms(forward, pixels) for _ in range(ROUNDS)] for name, forward in runtimes.items()}
    boxed, empty = find_photos(count)
    scores = {name: score(forward, boxed, empty) for name, forward in runtimes.items()}
    rows = [(name, min(ms[name]), c, *at) for name in runtimes for c, at in zip(CONFIDENCES, scores[name], strict=True)]
    columns = ("runtime", "CPU ms", "from", "recall", "precision", "empties with a box")
    show(f"{len(boxed)} images with boxes, {len(empty)} empty", columns, rows)
    faster = min(ms["ONNX Runtime"]) / min(ms["OpenVINO, bfloat16"])
    pairs = zip(scores["ONNX Runtime"], scores["OpenVINO, bfloat16"], strict=True)
    lost = max(single[i] - low[i] for single, low in pairs for i in (0, 1))
    figure = f"bfloat16 {faster:.2f} x as fast; at most {100 * lost:.1f} points of recall or precision lost"
    aim = f"at least {FASTEST_FIRST:g} x; {100 * MOST_LOST:g} points"
    conclude("bfloat16", figure=figure, aim=aim, met=faster >= FASTEST_FIRST and lost <= MOST_LOST)


def exported_network() -> Path:
    """The detector as the product exported it."""
    from animl_pipeline.config import DetectionsConfig
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.steps.detections import yolox_lite
    from animl_pipeline.steps.detections.choose_detector import choose_detector
    from animl_pipeline.storage.store import digest_of

    chosen, settings = choose_detector(DetectionsConfig(source="detector"), Settings()), Settings()
    chosen.load()
    identity = ["yolox-lite", yolox_lite.VERSION, chosen.sha256, chosen.image_size]
    return settings.cache.expanduser() / "detectors" / digest_of([identity, version("torch")])[:32] / "network.onnx"


def onnxruntime(network: Path) -> Forward:
    """The product's own runtime."""
    from animl_pipeline.steps.detections.inference_backend import _run_with_onnxruntime

    return _run_with_onnxruntime(network)


def openvino(network: Path, precision: str) -> Forward:
    """OpenVINO's CPU runtime, one thread."""
    from importlib import import_module

    ov: Any = import_module("openvino")  # no dependency of the product
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(str(network), "CPU", options).create_infer_request()
    return lambda pixels: [np.concatenate(o) for o in zip(*(_infer(request, pixels[i : i + 1]) for i in range(len(pixels))), strict=True)]


def _infer(request: Any, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    return [np.array(output) for output in request.infer({0: pixels}).values()]


def cpu_ms(forward: Forward, pixels: NDArray[np.uint8]) -> float:
    """CPU ms of one forward pass, after a first one."""
    forward(pixels)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(4):
        forward(pixels)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return 250 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def find_photos(count: int) -> tuple[list[Photo], list[Photo]]:
    """Images with reviewed boxes, and empty ones, spread over the files."""
    boxed: list[Photo] = []
    empty: list[Photo] = []
    for file in sorted(Path(os.environ["ANIML_DATA"]).glob("*/cct.json")):
        cct = json.loads(file.read_text())
        names, photos = {c["id"]: c["name"] for c in cct["categories"]}, {i["id"]: i for i in cct["images"]}
        boxes: dict[str, list[list[float]]] = {}
        for a in cct["annotations"]:
            photo = photos[a["image_id"]]
            if names[a["category_id"]] == "empty":
                empty.append(Photo(file.parent / photo["file_name"], []))
            elif a.get("bbox") and photo.get("width"):
                x, y, w, h = a["bbox"]
                corners = [y / photo["height"], x / photo["width"], (y + h) / photo["height"], (x + w) / photo["width"]]
                boxes.setdefault(a["image_id"], []).append(corners)
        boxed += [Photo(file.parent / photos[i]["file_name"], found) for i, found in boxes.items()]
    return boxed[:: max(1, len(boxed) // count)][:count], empty[:: max(1, 2 * len(empty) // count)][: count // 2]


def score(forward: Forward, boxed: list[Photo], empty: list[Photo]) -> list[tuple[float, float, float]]:
    """Recall, precision and the share of empty images with a box, at each confidence."""
    from animl_pipeline.steps.detections.box_overlap import iou
    from animl_pipeline.steps.detections.inference_backend import LoadedNetwork
    from animl_pipeline.steps.detections.yolox_lite import YoloxLite

    detector = YoloxLite(LoadedNetwork(forward, {}, batched=False), 640, min(CONFIDENCES))
    found = {p.path: detector.predict([detector.preprocess(p.path.read_bytes())])[0] for p in [*boxed, *empty]}
    results = []
    for confidence in CONFIDENCES:
        matched = made = 0
        for photo in boxed:
            boxes = [list(d[2:]) for d in found[photo.path] if d.confidence >= confidence]
            made += len(boxes)
            for truth in photo.boxes:
                best = max(boxes, key=lambda box: iou(truth, box), default=None)
                if best is not None and iou(truth, best) >= 0.5:
                    boxes.remove(best)
                    matched += 1
        false = sum(any(d.confidence >= confidence for d in found[photo.path]) for photo in empty)
        reviewed = sum(len(photo.boxes) for photo in boxed)
        results.append((matched / max(1, reviewed), matched / max(1, made), false / max(1, len(empty))))
    return results


if __name__ == "__main__":
    main()
