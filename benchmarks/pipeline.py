"""The whole job beside the chain of scripts in use: from the same images and labels to a package that can be deployed, then again with 5 % more.

The chain in use, restated plainly: MegaDetector Lite in a torch loop, an image at a time, into a JSON; a script that cuts the boxes out as JPEG
and divides them by location; a usual training loop in float32 (JPEG folders, Resize, ToTensor, two loader workers, SGD, val after each
epoch); TorchScript in a .tar.gz. It keeps nothing from run to run but its files, so the second run does everything again.

Ours, twice: once with the same network, image size, epochs and detector confidence (steps in one process, so that each phase is known);
and once as a user runs it, `animl-pipeline retrain` with the plan's defaults (a head on frozen networks), with Prefect and its server.

Images: 2048 x 1536 pixels, 5 classes at 20 locations, drawn animals with grain, of which the detector finds some. Each side is a process
of its own with one thread for arithmetic. CPU seconds are those of the process and its children; disk is all that a side keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tarfile
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detections import SIZE, clip, find_images
from measure import conclude, measured, show

IMAGES, NEW_SHARE, LOCATIONS, EPOCHS, BATCH, PIXELS = 400, 0.05, 20, 5, 32, 224
CLASSES = ("fox", "bird", "rodent", "skunk", "lizard")
BACKBONE, CONFIDENCE = "tf_efficientnet_lite0", 0.2
AIM, DATA_AIM, AGAIN_AIM = 2.5, 0.07, 8.0
DATA_PHASES = ("labels and images", "detection", "crops")
Run = dict[str, Any]
"""Phase → {cpu, wall}; and "crops made"."""


class Phases:
    """CPU and wall seconds of this process and its children, by phase."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = defaultdict(lambda: {"cpu": 0.0, "wall": 0.0})
        self._cpu, self._wall = cpu_with_children(), time.monotonic()

    def stop(self, phase: str) -> None:
        """Count the time since the last call for ``phase``."""
        cpu, wall = cpu_with_children(), time.monotonic()
        self.found[phase]["cpu"] += cpu - self._cpu
        self.found[phase]["wall"] += wall - self._wall
        self._cpu, self._wall = cpu, wall


def cpu_with_children() -> float:
    """User and system seconds of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


# -- the chain in use --------------------------------------------------------------------------------------------------


def chain(folder: Path) -> Run:
    """The scripts, one after the other."""
    phases = Phases()
    export, target = json.loads((folder / "export.json").read_text()), folder / "chain"
    boxes = detect_all(folder, [image["file_name"] for image in export["images"]])
    target.mkdir(exist_ok=True)
    (target / "detections.json").write_text(json.dumps(boxes))
    phases.stop("detection")
    label = {a["image_id"]: CLASSES[a["category_id"] - 1] for a in export["annotations"]}
    made = sum(cut_out(folder, target, image, label[image["id"]], boxes[image["file_name"]]) for image in export["images"])
    phases.stop("crops")
    train(target)
    phases.stop("training")
    with tarfile.open(target / "model.tar.gz", "w:gz") as tar:
        tar.add(target / "model.pt", "model.pt")
    phases.stop("package")
    return phases.found | {"crops made": made}


def detect_all(folder: Path, names: list[str]) -> dict[str, list[list[float]]]:
    """File name → confidence, ymin, xmin, ymax, xmax of each box."""
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
    found = {}
    for name in names:
        image = Image.open(folder / "images" / name).convert("RGB")
        ratio = min(640 / image.width, 640 / image.height)
        width, height = round(image.width * ratio), round(image.height * ratio)
        canvas = np.zeros((640, 640, 3), np.float32)
        canvas[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        with torch.inference_mode():
            (rows,) = postprocess(network(torch.from_numpy(canvas.transpose(2, 0, 1)[None].copy())), 1, CONFIDENCE, 0.45)
        rows = [] if rows is None else rows.tolist()
        found[name] = [[r[4] * r[5], *clip(r[1] / height, r[0] / width, r[3] / height, r[2] / width)] for r in rows]
    return found


def cut_out(folder: Path, target: Path, image: dict[str, Any], label: str, boxes: list[list[float]]) -> int:
    """Save a square around each box as JPEG, in the folder of its split and class; how many there are."""
    from PIL import Image

    split = "test" if image["location"] in {"loc18", "loc19"} else "val" if image["location"] in {"loc14", "loc15", "loc16", "loc17"} else "train"
    where = target / split / label
    where.mkdir(parents=True, exist_ok=True)
    if not boxes:
        return 0
    with Image.open(folder / "images" / image["file_name"]) as picture:
        picture.load()
    for number, (_, top, left, bottom, right) in enumerate(boxes):
        width, height = (right - left) * picture.width, (bottom - top) * picture.height
        side = max(1, int(max(width, height)))
        x, y = int(left * picture.width - (side - width) / 2), int(top * picture.height - (side - height) / 2)
        picture.crop((x, y, x + side, y + side)).save(where / f"{image['id']}-{number}.jpg")
    return len(boxes)


def train(target: Path) -> None:
    """The usual loop, and the model as TorchScript."""
    import timm
    import torch
    from torchvision import datasets, transforms

    prepare = transforms.Compose([transforms.Resize((PIXELS, PIXELS)), transforms.ToTensor()])
    sets = {s: datasets.ImageFolder(str(target / s), prepare, allow_empty=True) for s in ("train", "val", "test")}
    loaders = {s: torch.utils.data.DataLoader(sets[s], BATCH, shuffle=s == "train", num_workers=2, drop_last=s == "train") for s in sets}
    model = timm.create_model(BACKBONE, num_classes=len(CLASSES))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        model.train()
        for images, targets in loaders["train"]:
            optimiser.zero_grad()
            loss_of(model(images), targets).backward()
            optimiser.step()
        accuracy(model, loaders["val"])
    accuracy(model, loaders["test"])
    trace: Any = torch.jit.trace  # it has no types
    trace(model.eval(), torch.zeros(1, 3, PIXELS, PIXELS)).save(str(target / "model.pt"))


def accuracy(model: Any, loader: Any) -> float:
    """The share of right answers."""
    import torch

    model.eval()
    with torch.inference_mode():
        right = [(model(images).argmax(1) == targets).float() for images, targets in loader]
    return float(torch.cat(right).mean()) if right else 0.0


# -- ours --------------------------------------------------------------------------------------------------------------


def ours(folder: Path) -> Run:
    """The steps of the flow, one after the other, with the network, size and epochs of the chain."""
    phases = Phases()
    from animl_pipeline.config import load_plan
    from animl_pipeline.config.settings import Settings
    from animl_pipeline.deploy.released_model import find_champion_for_step
    from animl_pipeline.steps import calibration, crops, detections, evaluation, export, images, labels, package, splits, training
    from animl_pipeline.storage.store import open_store

    plan, settings = load_plan(folder / "same.yaml"), Settings(store=str(folder / "ours"), data=folder)
    store, (source,) = open_store(settings), plan.sources
    exported = export.export_annotations(source, store, settings)
    downloaded = images.download_images(source, exported, labels.wanted_labels(plan.labels, source.name, settings), store, settings, plan.images)
    labelled = labels.resolve_labels([labels.SourceArtifacts(source, exported, downloaded)], plan.labels, store, settings)
    phases.stop("labels and images")
    detected = detections.detect_animals(labelled, plan.detections, store, settings)
    phases.stop("detection")
    cropped = crops.extract_crops(labelled, detected, plan.crops, plan.model_input, store, settings)
    phases.stop("crops")
    split = splits.split_by_location(cropped, plan.splits, tuple(plan.labels.classes), store, plan.model)
    phases.stop("splits")
    trained = training.train_classifier(cropped, split, plan, store, settings)
    phases.stop("training")
    calibrated = calibration.calibrate_classifier(trained, cropped, split, plan.thresholds, store)
    counts = tuple((a.step, a.counts) for a in (exported, downloaded, labelled, detected, cropped, split, trained, calibrated))
    champion = find_champion_for_step(plan, calibrated, store).package
    scored = evaluation.evaluate_classifier(calibrated, cropped, split, plan, store, champion=champion, step_counts=counts)
    phases.stop("evaluation and report")
    package.package_model(calibrated, scored, plan.package, store)
    phases.stop("package")
    return phases.found | {"crops made": cropped.counts.kept}


def defaults(folder: Path) -> Run:
    """The command with the plan's defaults, Prefect's embedded server included."""
    import subprocess
    import sys

    phases = Phases()
    command = [sys.executable, "-m", "animl_pipeline.cli", "retrain", "default.yaml", "--store", "defaults", "--data", "."]
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PREFECT_HOME": str(folder / "prefect"), "PYTHONPATH": root}
    subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    phases.stop("all")
    return phases.found | {"crops made": None}


SIDES = {"chain": chain, "ours": ours, "defaults": defaults}
TITLES = {"chain": "chain in use", "ours": "ours, same training", "defaults": "ours, the plan's defaults"}


# -- inputs ------------------------------------------------------------------------------------------------------------


def draw(folder: Path, count: int) -> None:
    """The images: those of the synthetic data set, enlarged to a camera's size, each with a grain of its own. Neighbours are of one scene."""
    import numpy as np
    from PIL import Image

    from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset

    write_synthetic_dataset(folder / "synthetic")
    small = [path for path in find_images(folder / "synthetic") if decodes(path)]
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.open(small[number * len(small) // count]).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        grained = np.asarray(image, np.int16) + rng.integers(-9, 10, (SIZE[1], SIZE[0], 1), np.int16)
        Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:05}.jpg", quality=85)


def decodes(path: Path) -> bool:
    """Whether it is a whole image; the synthetic data set has a damaged one."""
    from PIL import Image

    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


def write_export(folder: Path, count: int, *, new: bool) -> None:
    """An export of ``count`` images, without one of 21 unless ``new``: two hours apart, with one label each, neighbours at one location."""
    first = datetime(2025, 1, 1, tzinfo=UTC)
    named = [n for n in range(count) if new or n % (1 + round(1 / NEW_SHARE))]
    images = [
        {"id": f"i{n:05}", "file_name": f"{n:05}.jpg", "location": f"loc{n * LOCATIONS // count}", "width": SIZE[0], "height": SIZE[1]}
        | {"datetime": (first + timedelta(hours=2 * n)).isoformat()}
        for n in named
    ]
    labels = [{"id": f"a{n:05}", "image_id": f"i{n:05}", "category_id": 1 + (n + n // 7) % len(CLASSES)} for n in named]
    categories = [{"id": 0, "name": "empty"}, *({"id": 1 + i, "name": name} for i, name in enumerate(CLASSES))]
    (folder / "export.json").write_text(json.dumps({"info": {}, "images": images, "annotations": labels, "categories": categories}))


def write_plans(folder: Path) -> None:
    """same.yaml trains as the chain does; default.yaml leaves the training to the defaults."""
    plan = {
        "model": "bench",
        "sources": [{"name": "drawn", "export": "export.json", "images": "images"}],
        "labels": {"classes": {c: [c] for c in CLASSES}, "on_too_few": "warn"},
        "model_input": {"size": PIXELS, "mean": [0.5] * 3, "std": [0.5] * 3},
        "detections": {"source": "detector", "confidence": CONFIDENCE, "repeat_min_occasions": None},
    }
    same = {"recipe": "fine_tune", "select": "validation", "backbone": BACKBONE, "epochs": EPOCHS, "batch_size": BATCH, "head_epochs": 0}
    (folder / "same.yaml").write_text(json.dumps(plan | {"train": same}))  # JSON is YAML
    (folder / "default.yaml").write_text(json.dumps(plan))


# -- the comparison ----------------------------------------------------------------------------------------------------


def compare(count: int) -> None:
    """Both runs of all sides."""
    cpu: dict[tuple[str, str], float] = {}
    phase_rows, rows, data = [], [], {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        total = round(count * (1 + NEW_SHARE))
        draw(folder, total)
        write_plans(folder)
        for when in ("first", "5 % new"):
            write_export(folder, total, new=when != "first")
            for side in SIDES:
                before = cpu_with_children()
                run = measured(Path(__file__), "--side", side, str(folder), env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"})
                cpu[side, when] = cpu_with_children() - before
                made = run.said.pop("crops made")
                wall = sum(phase["wall"] for phase in run.said.values())
                rows.append((f"{TITLES[side]}, {when}", cpu[side, when], wall, run.peak_mb, disk_mb(folder / side), "" if made is None else made))
                data[side, when] = sum(run.said[p]["cpu"] for p in DATA_PHASES if p in run.said)
                phase_rows += [(f"{TITLES[side]}, {when}", phase, spent["cpu"], spent["wall"]) for phase, spent in run.said.items()]
    show(f"phases, {count} images, {EPOCHS} epochs of {BACKBONE}", ("side", "phase", "CPU s", "wall s"), phase_rows)
    show("in all, imports included", ("side", "CPU s", "wall s", "peak MB", "MB on disk", "crops"), rows)
    first, again = cpu["chain", "first"] / cpu["ours", "first"], cpu["chain", "5 % new"] / cpu["defaults", "5 % new"]
    share = data["ours", "5 % new"] / data["ours", "first"]
    show(
        "ratios of CPU seconds",
        ("chain in use : ours", "first", "5 % new"),
        [(TITLES[side], *(cpu["chain", when] / cpu[side, when] for when in ("first", "5 % new"))) for side in ("ours", "defaults")],
    )
    conclude(
        "pipeline",
        figure=f"first run {first:.2f} x (same training); 5 % new {again:.1f} x (defaults), its data part {share:.1%} of the first",
        aim=f"at least {AIM} x, {AGAIN_AIM:g} x, at most {DATA_AIM:.0%}",
        met=first >= AIM and again >= AGAIN_AIM and share <= DATA_AIM,
    )


def disk_mb(folder: Path) -> float:
    """Megabytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def main() -> None:
    """One side, or the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, help="images of the first run; fewer for a try")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side[0]](Path(arguments.side[1]))))
    else:
        compare(arguments.images)


if __name__ == "__main__":
    main()
