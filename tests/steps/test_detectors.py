"""Detector families: the same boxes as the packages that made the networks, the cache of exported networks, and what the index name holds."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections import check_ready, choose_detector, find_animals, yolox_lite
from animl_pipeline.steps.detections.box_overlap import iou, match_animals, non_maximum_suppression
from animl_pipeline.steps.detections.detector import CATEGORY_OF_NAME, Detection, clean_detections
from animl_pipeline.steps.detections.ultralytics_detector import import_ultralytics, letterbox
from tests.conftest import jpeg
from tests.support.detectors import settings_with_megadetector_lite
from tests.support.paths import DATA

ELLIPSES = 12
MISSOURI = DATA / "missouri"


def scene(width: int, height: int, seed: int = 0) -> bytes:
    """A JPEG with coloured ellipses on grain, so that a network has something to detect."""
    rng = np.random.default_rng(seed)
    image = Image.open(io.BytesIO(jpeg(width, height, seed=seed))).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(ELLIPSES):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        r = int(rng.integers(8, max(9, width // 6)))
        draw.ellipse((x - r, y - r // 2, x + r, y + r // 2), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def build_confident(path: Path, config: str, settings: Settings) -> Path:
    """A checkpoint of an untrained network whose normalisation fits scenes and whose scores are spread, so that some are high."""
    yolo, _ = import_ultralytics(settings)
    import torch

    torch.manual_seed(0)
    model = yolo(config)
    model.model.names = {i: ("animal", "person", "vehicle", f"thing {i}")[i % 4] for i in range(len(model.model.names))}
    network = model.model
    pixels = [letterbox(Image.open(io.BytesIO(scene(320, 240, seed))).convert("RGB"), 320).pixels for seed in range(4)]
    inputs = torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # use the plain mean of these scenes
    with torch.no_grad():
        network.train()(inputs)
        raw = network.eval()(inputs)[1]
        logits = raw.get("one2one", raw)["scores"].amax(1).flatten()
    scale, high = 1.5 / float(logits.std()), float(logits.topk(100).values[-1])
    head = network.model[-1]
    for layer in getattr(head, "one2one_cv3", None) or head.cv3:
        last = layer[-1]
        last.weight.data *= scale
        last.bias.data = (last.bias.data - high) * scale - 1.0986  # a hundred anchors of the four scenes get a probability of 0.25
    model.save(path)
    return path


@pytest.fixture(scope="module")
def shared_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with a cache that the module's tests share."""
    folder = tmp_path_factory.mktemp("families")
    return Settings(store=str(folder / "store"), data=folder, cache=folder / "cache", workers=2, timeout_s=5)


@pytest.fixture(scope="module")
def confident(shared_settings: Settings) -> Path:
    return build_confident(shared_settings.data / "confident.pt", "yolo11n.yaml", shared_settings)


def choose(path: Path | str, settings: Settings, **more: Any) -> choose_detector.ChosenDetector:
    return choose_detector.choose_detector(DetectionsConfig(source="detector", detector=str(path), **({"image_size": 320} | more)), settings)


def detect(chosen: choose_detector.ChosenDetector, *images: bytes) -> list[list[Detection]]:
    detector = chosen.load()
    return detector.predict([detector.preprocess(image) for image in images])


def assert_same_boxes(ours: list[Detection], theirs: list[Detection]) -> None:
    assert len(ours) == len(theirs)
    rest = list(ours)
    for box in theirs:
        partner = max((o for o in rest if o.category == box.category), key=lambda o: iou(o[2:], box[2:]))
        assert iou(partner[2:], box[2:]) >= 0.99
        assert partner.confidence == pytest.approx(box.confidence, abs=0.01)
        rest.remove(partner)


# -- ultralytics


@pytest.mark.parametrize(
    "config",
    [
        "yolo11n.yaml",
        pytest.param("yolov8n.yaml", marks=pytest.mark.slow),
        pytest.param("yolov9t.yaml", marks=pytest.mark.slow),
        pytest.param("yolov10n.yaml", marks=pytest.mark.slow),
    ],
)
def test_boxes_equal_those_of_ultralytics_predict_for_images_of_any_shape(config: str, shared_settings: Settings) -> None:
    path = build_confident(shared_settings.data / f"{Path(config).stem}.pt", config, shared_settings)
    yolo, _ = import_ultralytics(shared_settings)
    model = yolo(str(path))
    images = [scene(320, 240, 1), scene(640, 480, 1), scene(240, 400, 2), scene(501, 283, 3)]
    chosen = choose(path, shared_settings)
    assert not chosen.load().batched, "ONNX Runtime runs the network, because it agreed with torch"
    detections = detect(chosen, *images)
    assert sum(map(len, detections)) >= 10
    for image, ours in zip(images, detections, strict=True):
        (result,) = model.predict(Image.open(io.BytesIO(image)), imgsz=320, conf=0.25, iou=0.45, device="cpu", verbose=False)
        rows = zip(result.boxes.cls.tolist(), result.boxes.conf.tolist(), result.boxes.xyxyn.tolist(), strict=True)
        named = [(result.names[int(index)], conf, box) for index, conf, box in rows]
        theirs = [Detection(CATEGORY_OF_NAME[name], conf, b[1], b[0], b[3], b[2]) for name, conf, b in named if name in CATEGORY_OF_NAME]
        assert_same_boxes(ours, theirs)


@pytest.mark.slow
def test_a_network_with_another_head_runs_through_ultralytics_predict(shared_settings: Settings) -> None:
    import_ultralytics(shared_settings)
    from ultralytics import RTDETR

    model = RTDETR("rtdetr-l.yaml")
    model.model.names = dict.fromkeys(range(80), "animal")
    model.save(shared_settings.data / "rtdetr.pt")
    detector = choose("rtdetr.pt", shared_settings, confidence=0.001).load()
    assert detector.batched
    (detections,) = detector.predict([detector.preprocess(scene(320, 240))])
    assert all(d.category == ANIMAL for d in detections)


def test_a_batch_gives_the_detections_of_each_image_alone(confident: Path, shared_settings: Settings) -> None:
    images = [scene(320, 240, 4), scene(240, 320, 5), scene(320, 240, 6)]
    chosen = choose(confident, shared_settings)
    together = detect(chosen, *images)
    assert sum(map(len, together)) > 0
    assert [detect(chosen, image)[0] for image in images] == together


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([128, 320]))
@hypothesis_settings(deadline=None, max_examples=30)
def test_a_letterbox_has_sides_of_32_pixels_multiples_and_contains_the_whole_image(width: int, height: int, side: int) -> None:
    made = letterbox(Image.new("RGB", (width, height), (10, 20, 30)), side)
    tall, wide, _ = made.pixels.shape
    assert (tall % 32, wide % 32, max(made.width, made.height)) == (0, 0, side)
    assert wide - made.width < 32
    assert tall - made.height < 32
    inside = np.zeros((tall, wide), bool)
    inside[made.top : made.top + made.height, made.left : made.left + made.width] = True
    assert (made.pixels[inside] == (10, 20, 30)).all()
    assert (made.pixels[~inside] == 114).all()


# -- the cache of exported networks


def test_a_second_run_imports_neither_torch_nor_ultralytics(confident: Path, shared_settings: Settings) -> None:
    config = DetectionsConfig(source="detector", detector=str(confident), image_size=320)
    first = find_animals(scene(320, 240, 1), config, shared_settings)
    script = """
import sys
from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.steps.detections import find_animals
found = find_animals(open(sys.argv[3], "rb").read(), DetectionsConfig.model_validate_json(sys.argv[2]), Settings.model_validate_json(sys.argv[1]))
print(sorted({"torch", "ultralytics", "torchvision", "yolox"} & set(sys.modules)), [b.as_list() for b in found])
"""
    image = shared_settings.data / "scene.jpg"
    image.write_bytes(scene(320, 240, 1))
    command = [sys.executable, "-c", script, shared_settings.model_dump_json(), config.model_dump_json(), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[] {[b.as_list() for b in first]}"


def test_a_damaged_network_in_the_cache_is_exported_again(confident: Path, shared_settings: Settings) -> None:
    before = detect(choose(confident, shared_settings), scene(320, 240, 1))
    paths = sorted((shared_settings.cache / "detectors").glob("*/network.onnx"))
    contents = [p.read_bytes() for p in paths]
    for path in paths:
        path.write_bytes(b"damaged")
    assert detect(choose(confident, shared_settings), scene(320, 240, 1)) == before
    assert any(p.read_bytes() in contents for p in paths)


def test_megadetector_lite_in_onnx_runtime_agrees_with_torch() -> None:
    settings = settings_with_megadetector_lite()
    chosen = choose_detector.choose_detector(DetectionsConfig(source="detector"), settings)
    assert (chosen.image_size, chosen.confidence) == (640, 0.25)
    assert not chosen.load().batched
    saved = [json.loads(p.read_bytes()) for p in (settings.cache.expanduser() / "detectors").glob("*/network.json")]
    assert max(n["difference"] for n in saved) < 1e-3


# -- what the index of detected images depends on


def test_the_index_name_changes_with_everything_that_shapes_boxes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choose_detector.ChosenDetector("md", "yolox-lite", "0" * 64, 640, 0.25, lambda: pytest.fail("not loaded"))
    names = [
        chosen.index_name(),
        chosen._replace(sha256="1" * 64).index_name(),
        chosen._replace(image_size=320).index_name(),
        chosen._replace(confidence=0.3).index_name(),
        chosen._replace(family="ultralytics").index_name(),
    ]
    assert chosen._replace(name="another name", load=lambda: pytest.fail("not loaded")).index_name() == names[0]
    with monkeypatch.context() as changed:
        changed.setattr(yolox_lite, "VERSION", 999)
        names.append(chosen.index_name())
    for library in yolox_lite.LIBRARIES:
        with monkeypatch.context() as changed:
            changed.setattr(choose_detector, "installed_version", lambda name, library=library: "9.9" if name == library else "1.0")
            names.append(chosen.index_name())
    assert len(set(names)) == len(names)


# -- boxes

coordinates = st.floats(-2, 2)
corners = st.tuples(st.floats(0, 0.8), st.floats(0, 0.8), st.floats(0.05, 0.2), st.floats(0.05, 0.2)).map(
    lambda s: (s[0], s[1], s[0] + s[2], s[1] + s[3])
)
scored_boxes = st.tuples(st.floats(0, 80), st.floats(0, 80), st.floats(1, 30), st.floats(1, 30), st.floats(0.1, 1), st.integers(0, 2))


@given(st.lists(scored_boxes, max_size=40))
@hypothesis_settings(deadline=None)
def test_non_maximum_suppression_keeps_the_boxes_that_torchvision_keeps(rows: list[Any]) -> None:
    import torch
    from torchvision.ops import batched_nms

    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([r[4] for r in rows], np.float32) - np.arange(len(rows), dtype=np.float32) * 1e-4  # no equal scores
    classes = np.array([r[5] for r in rows], np.intp)
    theirs = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), 0.45).tolist()
    assert non_maximum_suppression(boxes, scores, classes, 0.45).tolist() == theirs


@given(st.lists(st.tuples(st.floats(0, 1), coordinates, coordinates, coordinates, coordinates), max_size=8))
def test_clean_detections_have_an_area_inside_the_image_and_are_stable(raw: list[tuple[float, ...]]) -> None:
    cleaned = clean_detections(Detection(ANIMAL, *numbers) for numbers in raw)
    assert all(0 <= d.ymin < d.ymax <= 1 and 0 <= d.xmin < d.xmax <= 1 for d in cleaned)
    assert clean_detections(cleaned) == cleaned


@given(st.lists(corners, max_size=5), st.lists(corners, max_size=5))
def test_a_reviewed_box_matches_at_most_one_detection_that_overlaps_it_by_half(reviewed: list[Any], detected: list[Any]) -> None:
    named = {str(i): box for i, box in enumerate(reviewed)}
    matched = match_animals(named, [Detection(ANIMAL, 0.5, *box) for box in detected])
    assert len(set(matched.values())) == len(matched)
    assert all(iou(named[annotation_id], detected[i]) >= 0.5 for i, annotation_id in matched.items())


@given(corners)
def test_the_iou_of_a_box_with_itself_is_one(box: Any) -> None:
    assert iou(box, box) == pytest.approx(1)


# -- plans that cannot work


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"detector": "sagemaker:"}, "wrong_endpoint_name"),
        ({"detector": "sagemaker:md realtime"}, "wrong_endpoint_name"),
        ({"images_with_people": "drop"}, "finds_no_people"),
        ({"source": "results", "results": "none.json"}, "file_missing"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_before_anything_is_downloaded(settings: Settings, keys: dict[str, Any], code: str) -> None:
    with pytest.raises(DetectionsError) as refused:
        check_ready(DetectionsConfig(**keys), settings)
    assert refused.value.code == code


# -- YOLOv5


def test_a_yolov5_checkpoint_needs_a_sha256_in_the_plan(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "md_v5.pt").write_bytes(b"checkpoint")
    with pytest.raises(DetectionsError, match=hashlib.sha256(b"checkpoint").hexdigest()) as refused:
        choose(tmp_path / "md_v5.pt", settings, family="yolov5")
    assert refused.value.code == "sha256_required"


@pytest.fixture(scope="module")
def yolov5_checkpoint(shared_settings: Settings) -> Path:
    """A checkpoint of an untrained YOLOv5n."""
    pytest.importorskip("yolov5", reason="the YOLOv5 code is not installed (docs/detections.md)")
    import torch
    from yolov5.models import yolo

    torch.manual_seed(0)
    model = yolo.DetectionModel(str(Path(yolo.__file__).with_name("yolov5n.yaml")), nc=3)
    model.names = {0: "animal", 1: "person", 2: "vehicle"}
    torch.save({"model": model.half(), "epoch": -1}, shared_settings.data / "yolov5n.pt")
    return shared_settings.data / "yolov5n.pt"


@pytest.mark.filterwarnings("ignore")
def test_a_yolov5_checkpoint_runs_through_the_megadetector_package(yolov5_checkpoint: Path, shared_settings: Settings) -> None:
    sha256 = hashlib.sha256(yolov5_checkpoint.read_bytes()).hexdigest()
    chosen = choose(yolov5_checkpoint, shared_settings, family="yolov5", sha256=sha256, confidence=1e-4)
    images = [scene(320, 240), scene(240, 320, 1)]
    together = detect(chosen, *images)
    assert [detect(chosen, image)[0] for image in images] == together
    assert all(d.category in {"1", "2", "3"} for detections in together for d in detections)
    assert sum(map(len, together)) > 0


@pytest.mark.skipif(importlib.util.find_spec("yolov5") is not None, reason="the YOLOv5 code is installed")
def test_without_the_yolov5_code_the_message_names_the_page_to_read(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "md_v5.pt").write_bytes(b"checkpoint")
    sha256 = hashlib.sha256(b"checkpoint").hexdigest()
    with pytest.raises(DetectionsError, match=r"docs/detections\.md") as refused:
        choose(tmp_path / "md_v5.pt", settings, family="yolov5", sha256=sha256).load()
    assert refused.value.code == "package_missing"


# -- trained on real boxes


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not MISSOURI.is_dir(), reason="no real images in ANIML_TEST_DATA")
def test_a_network_trained_on_real_boxes_detects_animals(shared_settings: Settings) -> None:
    export = json.loads((MISSOURI / "cct.json").read_text(encoding="utf-8"))
    boxes: dict[str, list[Any]] = {}
    for annotation in export["annotations"]:
        if annotation.get("bbox"):
            boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    folder = shared_settings.data / "missouri"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    selected = [image for image in export["images"] if image["id"] in boxes][::10]
    for number, image in enumerate(selected):
        (folder / "images" / f"{number}.jpg").symlink_to(MISSOURI / image["file_name"])
        lines = [f"0 {(x + w / 2) / 640} {(y + h / 2) / 640} {w / 640} {h / 640}\n" for x, y, w, h in boxes[image["id"]]]
        (folder / "labels" / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames: {{0: animal}}\n", encoding="utf-8")
    yolo, _ = import_ultralytics(shared_settings)
    yolo("yolo11n.yaml").train(
        data=str(folder / "data.yaml"), epochs=3, imgsz=160, batch=8, device="cpu", workers=0, val=False, plots=False, project=str(folder), name="run"
    )
    (trained,) = folder.rglob("last.pt")
    chosen = choose(trained, shared_settings, image_size=160, confidence=0.001)
    detections = detect(chosen, *((MISSOURI / image["file_name"]).read_bytes() for image in selected[:20]))
    assert not chosen.load().batched
    assert sum(map(len, detections)) > 0
    assert {d.category for found in detections for d in found} == {ANIMAL}
