"""The synthetic data set: what the demo and the tests rely on."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from animl_pipeline.config import load_plan
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImageError, StoreError
from animl_pipeline.dev.synthetic_dataset import MARKER, RESULTS_FILE, write_synthetic_dataset
from animl_pipeline.dev.synthetic_images import SCENE_HEIGHT, SPECIES, WIDTH, Animal, draw_animal
from tests.support.paths import ROOT

PLAN = ROOT / "deployments" / "plans" / "sample.yaml"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the synthetic data set."""
    folder = tmp_path_factory.mktemp("data") / "sample"
    assert write_synthetic_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def export(dataset: Path) -> dict[str, Any]:
    """Its export, parsed."""
    return dict(json.loads((dataset / "export.json").read_bytes()))


def inside(box: list[float], image: dict[str, Any]) -> bool:
    x, y, w, h = box
    return x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= image.get("width", 640) and y + h <= image.get("height", 480)


def wanted(export: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Class, annotation and image of every object that the sample's plan wants and that is sound."""
    images = {i["id"]: i for i in export["images"]}
    names = {c["id"]: c["name"] for c in export["categories"]}
    classes = {label: c for c, spec in load_plan(PLAN).labels.classes.items() for label in spec.labels()}
    known = [(classes.get(names.get(a["category_id"], "")), a, images.get(a["image_id"])) for a in export["annotations"]]
    return [(c, a, i) for c, a, i in known if c and i and a["validated"] and (a.get("bbox") is None or inside(a["bbox"], i))]


def test_it_says_that_it_is_synthetic(dataset: Path, export: dict[str, Any]) -> None:
    assert "SYNTHETIC" in export["info"]["description"]
    assert "SYNTHETIC" in (dataset / "README.txt").read_text()


def test_every_image_id_is_the_md5_of_its_file(dataset: Path, export: dict[str, Any]) -> None:
    absent = []
    for image in export["images"]:
        path = dataset / "images" / image["file_name"]
        project, md5 = image["id"].split(":")
        assert image["file_name"] == f"{project}/{image['file_name'].split('/')[1]}/{image['location']}/{project}-{md5}.jpg"
        assert image["serving_bucket_key"] == f"original/{image['id']}-original.jpg"
        if not path.exists():
            absent.append(image["id"])
        else:
            assert hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == md5
    assert len(absent) == 1, "one file is missing on purpose"
    assert len({i["id"] for i in export["images"]}) == len(export["images"])


def test_all_images_but_one_decode_and_have_the_size_that_the_export_says(dataset: Path, export: dict[str, Any]) -> None:
    broken = 0
    for image in export["images"]:
        path = dataset / "images" / image["file_name"]
        try:
            img = open_image(path.read_bytes()) if path.exists() else None
        except ImageError:
            broken += 1
            continue
        assert img is None or img.size == (image.get("width", 640), image.get("height", 480))
    assert broken == 1


def test_every_class_occurs_at_six_locations_or_more_by_day_and_at_night(export: dict[str, Any]) -> None:
    locations, hours = defaultdict(set), defaultdict(set)
    for class_id, _, image in wanted(export):
        locations[class_id].add(image["location"])
        hours[class_id].add(7 <= int(image["datetime"][11:13]) < 18)
    assert set(locations) == {"fox", "bird", "skunk", "rodent", "lizard"}
    assert min(len(p) for p in locations.values()) >= 6
    assert all(h == {True, False} for h in hours.values())


def test_there_is_enough_to_learn_from_and_it_stays_small(dataset: Path, export: dict[str, Any]) -> None:
    counts = Counter(class_id for class_id, _, _ in wanted(export))
    assert 350 <= counts.total() <= 480
    assert min(counts.values()) >= 40
    assert sum(p.stat().st_size for p in dataset.rglob("*") if p.is_file()) < 30e6
    empty = sum(a["category_id"] == 0 for a in export["annotations"])
    assert 0.10 <= empty / len(export["images"]) <= 0.20


def test_between_two_images_of_a_sequence_only_what_is_in_the_boxes_changes(dataset: Path, export: dict[str, Any]) -> None:
    boxes = defaultdict(list)
    for annotation in export["annotations"]:
        boxes[annotation["image_id"]].append(annotation.get("bbox"))
    sequences = defaultdict(list)
    for image in export["images"]:
        pixels = grey(dataset, image)
        if pixels is not None and all(boxes[image["id"]]):
            sequences[image["location"], image["datetime"][:15]].append((pixels, boxes[image["id"]]))
    inside_change, outside_change = [], []
    for (a, first), (b, second) in (sequence[:2] for sequence in sequences.values() if len(sequence) > 1):
        mask = np.zeros(a.shape, bool)
        for x, y, w, h in first + second:
            mask[y : y + h, x : x + w] = True
        if not mask.all():  # not an empty sequence
            inside_change.append(np.abs(a - b)[mask].mean())
            outside_change.append(np.abs(a - b)[~mask].mean())
    assert len(inside_change) > 60
    assert np.mean(inside_change) > 1.5 * np.mean(outside_change)
    assert np.max(outside_change) < 12, "outside of the boxes only the sensor's noise changes"


def grey(dataset: Path, image: dict[str, Any]) -> np.ndarray[Any, Any] | None:
    """A picture without its footer; None when it is missing or broken."""
    try:
        return np.asarray(open_image((dataset / "images" / image["file_name"]).read_bytes()).convert("L"), float)[:456]
    except (OSError, ImageError):
        return None


def test_the_night_has_no_colour(dataset: Path, export: dict[str, Any]) -> None:
    seen = 0
    for image in export["images"][::7]:
        path = dataset / "images" / image["file_name"]
        if not path.exists() or 5 <= int(image["datetime"][11:13]) < 20:
            continue
        rgb = np.asarray(open_image(path.read_bytes()), int)[:450]
        assert np.abs(rgb - rgb.mean(axis=-1, keepdims=True)).max() < 12
        seen += 1
    assert seen > 10


def test_the_planted_faults_are_there(export: dict[str, Any]) -> None:
    images = {i["id"]: i for i in export["images"]}
    annotations, categories = export["annotations"], {c["id"] for c in export["categories"]}
    boxes = [(a["bbox"], images[a["image_id"]]) for a in annotations if "bbox" in a and a["image_id"] in images]
    assert sum(a["validated_by"] == "Not Reviewed" and not a["validated"] for a in annotations) == 8
    assert sum("bbox" not in a for a in annotations) == 12
    assert sum(a["category_id"] not in categories for a in annotations) == 1
    assert sum(a["image_id"] not in images for a in annotations) == 1
    assert [n for n in Counter(a["id"] for a in annotations).values() if n > 1] == [2]
    assert sum("width" not in i and "height" not in i for i in export["images"]) == 1
    assert sum(b[2] == 0 or b[3] == 0 for b, _ in boxes) == 1
    assert sum(b[0] >= 640 for b, _ in boxes) == 1, "wholly outside"
    assert sum(b[0] < 640 < b[0] + b[2] for b, _ in boxes) == 1, "partly outside"
    assert sum(b == [0, 0, 640, 480] and a["category_id"] != 0 for a in annotations for b in [a.get("bbox")]) == 1, "a whole frame, not empty"


def test_the_results_file_stands_for_a_detector_that_misses_some_animals_and_sees_false_ones(dataset: Path, export: dict[str, Any]) -> None:
    results = json.loads((dataset / RESULTS_FILE).read_bytes())
    assert [r["file"] for r in results["images"]] == [i["file_name"] for i in export["images"]]
    detections = {r["file"]: r["detections"] for r in results["images"]}
    boxes = [d["bbox"] for found in detections.values() for d in found]
    assert all(x >= 0 and y >= 0 and w > 0 < h and x + w <= 1 + 1e-9 >= y + h for x, y, w, h in boxes)
    found, animals = 0, wanted(export)
    for _, annotation, image in animals:
        if "bbox" in annotation:
            found += any(overlap(annotation["bbox"], d["bbox"]) > 0.5 for d in detections[image["file_name"]])
    assert 0.85 < found / len(animals) < 0.97
    empty_images = {a["image_id"] for a in export["annotations"] if a["category_id"] == 0}
    false = [bool(detections[i["file_name"]]) for i in export["images"] if i["id"] in empty_images]
    assert 0.02 < np.mean(false) < 0.2


def overlap(pixels: list[float], relative: list[float]) -> float:
    """Intersection over union of a box in pixels and one relative to the image."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = pixels, [v * s for v, s in zip(relative, (640, 480, 640, 480), strict=True)]
    both = max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0, min(ay + ah, by + bh) - max(ay, by))
    return float(both / (aw * ah + bw * bh - both))


def test_a_second_call_writes_nothing_and_leaves_the_files_as_they_are(dataset: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*")}
    assert not write_synthetic_dataset(dataset)
    assert {p: p.stat().st_mtime_ns for p in dataset.rglob("*")} == before


def test_a_killed_run_is_done_again_and_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    half = next(p for p in (dataset / "images").rglob("*.jpg")).relative_to(dataset)
    (folder / half).parent.mkdir(parents=True)
    (folder / half).write_bytes(b"half a picture")  # as an older or a killed version left it, without a marker
    assert write_synthetic_dataset(folder)
    files = sorted(p.relative_to(dataset) for p in dataset.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert all((dataset / f).read_bytes() == (folder / f).read_bytes() for f in files)
    (folder / half).unlink()
    marker = json.loads((folder / MARKER).read_bytes())
    assert marker["files"][half.as_posix()] == (dataset / half).stat().st_size


def test_a_folder_that_cannot_be_written_gives_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError):
        write_synthetic_dataset(tmp_path / "file" / "sample")


@pytest.mark.parametrize("species", sorted(SPECIES))
def test_the_box_of_an_animal_follows_its_outline(species: str) -> None:
    empty = np.full((SCENE_HEIGHT, WIDTH, 3), 128, np.float32)
    canvas = empty.copy()
    box = draw_animal(canvas, Animal(species, WIDTH / 2, SCENE_HEIGHT - 20, 150, 1, 0.4), night=False)
    assert box is not None
    rows, columns = np.nonzero(np.abs(canvas - empty).max(axis=-1) > 1)
    x, y, width, height = box
    assert abs(x - columns.min()) <= 2 >= abs(y - rows.min())
    assert abs(x + width - columns.max() - 1) <= 2 >= abs(y + height - rows.max() - 1)


def test_images_are_jpegs_of_their_own(dataset: Path) -> None:
    paths = list((dataset / "images").rglob("*.jpg"))
    assert len({hashlib.sha256(p.read_bytes()).digest() for p in paths}) == len(paths)
    assert Image.open(io.BytesIO(paths[0].read_bytes())).format == "JPEG"
