"""The step detections: reviewed boxes where there are any, a detector elsewhere; no image is detected twice, and a kill loses only a batch."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core import progress
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import DetectionsError, WeightsError
from animl_pipeline.core.table_schemas import DISAGREEMENTS, IMAGES_WITH_PEOPLE, REPEAT_DETECTIONS
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.storage.store import Store, open_store, sha256_of
from tests.conftest import jpeg
from tests.support.detectors import (
    build_checkpoint,
    label_row,
    make_labels,
    read_boxes,
    read_failures,
    settings_with_megadetector_lite,
    write_results,
)
from tests.support.paths import DATA

BOX = (0.1, 0.2, 0.5, 0.6)
RUN = """
import sys
from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.steps.detections import detect_animals, run_detector_share
from animl_pipeline.storage.store import open_store
settings, labels = Settings.model_validate_json(sys.argv[1]), Artifact.model_validate_json(sys.argv[2])
config = DetectionsConfig.model_validate_json(sys.argv[3])
"""
RUN_STEP = RUN + "detect_animals(labels, config, open_store(settings), settings)"
RUN_SHARE = RUN + "print(run_detector_share(labels, config, int(sys.argv[4]), 2, open_store(settings), settings))"


@pytest.fixture(scope="session")
def network_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests share, so that a network is exported to ONNX once."""
    return tmp_path_factory.mktemp("networks")


@pytest.fixture
def settings(settings: Settings, network_cache: Path) -> Settings:
    return settings.model_copy(update={"cache": network_cache})


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("yolo") / "untrained.pt", {0: "animal", 1: "Person", 2: "vehicle"})


@pytest.fixture
def untrained(checkpoint: Path) -> DetectionsConfig:
    """A plan with an untrained detector, which finds animals everywhere, with very low confidence."""
    return DetectionsConfig(source="detector", detector=str(checkpoint), image_size=128, confidence=1e-6, batch_size=2)


@pytest.fixture
def reported() -> Iterator[list[tuple[str, int, int]]]:
    """The progress that was reported."""
    calls: list[tuple[str, int, int]] = []
    progress.set_listener(lambda what, done, total: calls.append((what, done, total)))
    yield calls
    progress.set_listener(None)


# -- whose boxes are used


def test_source_annotations_uses_reviewed_boxes_and_no_weights(store: Store, settings: Settings) -> None:
    rows = [label_row(store, jpeg(), "a", "o1", BOX), label_row(store, jpeg(seed=1), "b", "o2")]
    made = detect_animals(make_labels(store, rows), DetectionsConfig(source="annotations", detector="nowhere.pt"), store, settings)
    (box,) = read_boxes(store, made).to_dict("records")
    assert (box["annotation_id"], box["origin"], box["category"], box["confidence"]) == ("o1", "annotation", "1", 1.0)
    assert tuple(box[c] for c in ("ymin", "xmin", "ymax", "xmax")) == BOX
    assert read_failures(store, made) == {"b": "no_box"}
    assert made.counts == Counts(kept=1, dropped={"no_box": 1}, notes={"annotation_boxes": 1}, unit="images")


def test_source_auto_runs_the_detector_only_for_images_without_a_reviewed_box(store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    rows = [label_row(store, jpeg(), "a", "o1", BOX), label_row(store, jpeg(seed=1), "b", "o2")]
    made = detect_animals(make_labels(store, rows), untrained.model_copy(update={"source": "auto"}), store, settings)
    origins = read_boxes(store, made).groupby("image_id")["origin"].unique().map(list).to_dict()
    assert origins == {"a": ["annotation"], "b": ["detector"]}


def test_source_detector_gives_a_detection_the_id_of_the_reviewed_box_that_it_matches(
    store: Store, settings: Settings, untrained: DetectionsConfig
) -> None:
    unreviewed = detect_animals(make_labels(store, [label_row(store, jpeg(200, 150))]), untrained, store, settings)
    box = read_boxes(store, unreviewed).query("category == '1'").iloc[0]
    reviewed = label_row(store, jpeg(200, 150), "a", "o1", (box.ymin, box.xmin, box.ymax, box.xmax))
    made = detect_animals(make_labels(store, [reviewed]), untrained, store, settings)
    (own,) = read_boxes(store, made).query("annotation_id != ''").to_dict("records")
    assert (own["annotation_id"], own["origin"], own["ymin"], own["xmax"]) == ("o1", "detector", box.ymin, box.xmax)


def test_a_reviewed_box_of_a_person_is_not_an_animal_whatever_class_the_plan_gives_it(store: Store, settings: Settings) -> None:
    rows = [
        label_row(store, jpeg(), "a", "fox", (0.1, 0.1, 0.5, 0.5)),
        label_row(store, jpeg(), "a", "p", (0.5, 0.5, 0.9, 0.9), label="Human", class_id="people"),
    ]
    made = detect_animals(make_labels(store, rows), DetectionsConfig(source="annotations"), store, settings)
    assert list(read_boxes(store, made)["annotation_id"]) == ["fox"]
    assert made.counts.notes["images_with_people"] == 1


def test_images_with_people_are_listed_and_dropped_if_the_plan_says_so(store: Store, settings: Settings, tmp_path: Path) -> None:
    person = {"category": "2", "conf": 0.9, "bbox": [0, 0, 0.1, 0.1]}
    images = [{"file": f"{name}.jpg", "detections": [person] * (name == "a")} for name in "abc"]
    rows = [label_row(store, jpeg(seed=i), name, f"o{i}", BOX) for i, name in enumerate("abc")]
    dropped = [{"source": "island", "image_id": "b", "annotation_id": "p", "label": "Person", "reason": "excluded"}]
    labels = make_labels(store, rows, dropped)
    config = DetectionsConfig(source="results", results=write_results(tmp_path, images))
    kept = detect_animals(labels, config, store, settings)
    assert kept.counts == Counts(kept=3, notes={"annotation_boxes": 3, "images_with_people": 2, "not_found": 3}, unit="images")
    without = detect_animals(labels, config.model_copy(update={"images_with_people": "drop"}), store, settings)
    assert without.counts.dropped == {"person_in_image": 2}
    assert list(read_boxes(store, without)["image_id"]) == ["c"]
    assert list(store.table(without, IMAGES_WITH_PEOPLE)["image_id"]) == ["a", "b"]


def test_dropping_images_with_people_needs_a_detector_that_finds_people(store: Store) -> None:
    config = DetectionsConfig(source="detector", images_with_people="drop")
    with pytest.raises(DetectionsError) as refused:
        detect_animals(make_labels(store, [label_row(store, jpeg())]), config, store, settings_with_megadetector_lite())
    assert refused.value.code == "finds_no_people"


@pytest.mark.parametrize(("taken", "repeats"), [("", 0), ("2024-05-31", 0), ("2024-05-31T{:02}:00:00", 12)], ids=["undated", "one day", "hours"])
def test_images_that_may_be_of_one_occasion_are_not_several(store: Store, settings: Settings, tmp_path: Path, taken: str, repeats: int) -> None:
    """An animal that rests in front of the camera looks like a stone, unless it is known that hours lie between its images."""
    found = [{"category": "1", "conf": 0.9, "bbox": [0.3, 0.3, 0.2, 0.2]}]
    rows = [label_row(store, jpeg(seed=i), f"i{i:02}", sequence="", taken=taken.format(i)) for i in range(12)]
    config = DetectionsConfig(
        source="results", results=write_results(tmp_path, [{"file": f"i{i:02}.jpg", "detections": found} for i in range(12)]), repeat_min_occasions=6
    )
    made = detect_animals(make_labels(store, rows), config, store, settings)
    assert made.counts.notes.get("repeat_detections", 0) == repeats
    assert made.counts.dropped == ({"only_repeat_detections": 12} if repeats else {})


def test_repeat_detections_are_set_aside_and_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    stone, fox = [0.3, 0.3, 0.2, 0.2], [0.6, 0.1, 0.3, 0.4]
    images, rows = [], []
    for i in range(12):
        found = [{"category": "1", "conf": 0.5, "bbox": [v + 0.001 * (i % 3) for v in stone]}]
        found += [{"category": "1", "conf": 0.9, "bbox": [v + 0.02 * i / 3 for v in fox]}] * (i % 4 == 0)
        images.append({"file": f"i{i:02}.jpg", "detections": found})
        rows.append(label_row(store, jpeg(seed=i), f"i{i:02}", sequence=f"island/s{i // 2}"))
    labels = make_labels(store, rows)
    config = DetectionsConfig(source="results", results=write_results(tmp_path, images), repeat_min_occasions=6)
    made = detect_animals(labels, config, store, settings)
    assert made.counts.notes == {"detector_boxes": 3, "repeat_detections": 12}
    assert made.counts.dropped == {"only_repeat_detections": 9}
    assert set(read_failures(store, made).values()) == {"only_repeat_detections"}
    assert len(store.table(made, REPEAT_DETECTIONS)) == 12
    for occasions in (7, None):
        other = detect_animals(labels, config.model_copy(update={"repeat_min_occasions": occasions}), store, settings)
        assert other.counts.notes["detector_boxes"] == 15


def test_disagreements_of_people_and_the_detector_are_listed(store: Store, settings: Settings, tmp_path: Path) -> None:
    detections = [{"category": "1", "conf": 0.8, "bbox": box} for box in ([0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3])]
    reviewed = {"same": (0.1, 0.1, 0.3, 0.3), "moved": (0.6, 0.6, 0.95, 0.95), "alone": (0.0, 0.6, 0.2, 0.9)}
    labels = make_labels(store, [label_row(store, jpeg(), "a", name, box) for name, box in reviewed.items()])
    config = DetectionsConfig(source="results", results=write_results(tmp_path, [{"file": "a.jpg", "detections": detections}]))
    rows = store.table(detect_animals(labels, config, store, settings), DISAGREEMENTS)
    assert dict(zip(rows["annotation_id"], rows["kind"], strict=True)) == {"moved": "drawn_otherwise", "alone": "not_found"}
    detections.append({"category": "1", "conf": 0.7, "bbox": [0.0, 0.85, 0.2, 0.1]})
    write_results(tmp_path, [{"file": "a.jpg", "detections": detections}])
    rows = store.table(detect_animals(labels, config, store, settings), DISAGREEMENTS)
    assert set(rows["kind"]) == {"drawn_otherwise", "not_found", "not_reviewed"}


# -- images


def test_a_broken_image_is_a_failure_and_the_step_goes_on(store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    rows = [label_row(store, jpeg(), "a"), label_row(store, jpeg()[:-300], "b"), label_row(store, b"GIF98 no", "c")]
    made = detect_animals(make_labels(store, rows), untrained, store, settings)
    assert read_failures(store, made) == {"b": "image_broken", "c": "image_broken"}
    assert made.counts.dropped == {"image_broken": 2}
    assert Image.open.__module__ == "PIL.Image", "ultralytics' patch of Pillow is gone"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_every_kind_of_image_is_detected_with_its_pixels_as_stored(store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    plain = Image.open(io.BytesIO(jpeg(96, 64)))
    images = {
        "cmyk": encode(plain.convert("CMYK"), "JPEG"),
        "grey": encode(plain.convert("L"), "JPEG"),
        "16 bit": encode(Image.fromarray(np.full((64, 96), 40_000, np.uint16)), "PNG"),
        "mpo": encode(plain, "MPO", save_all=True, append_images=[plain]),
        "exif": encode(plain, "JPEG", exif=turned),
    }
    made = detect_animals(make_labels(store, [label_row(store, data, name) for name, data in images.items()]), untrained, store, settings)
    assert made.counts.kept == 5
    assert set(read_boxes(store, made)["image_id"]) == set(images)
    assert {open_image(data).size for data in images.values()} == {(96, 64)}


# -- the index of detected images


def test_detections_do_not_depend_on_the_batch(tmp_path: Path, store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    images = [jpeg(96 + 32 * (i % 3), 96, seed=i) for i in range(5)]
    one = detect_animals(make_labels(store, [label_row(store, p, str(i)) for i, p in enumerate(images)]), untrained, store, settings)
    other = open_store(Settings(store=str(tmp_path / "other")))
    rows = [label_row(other, p, str(i)) for i, p in enumerate(images)]
    two = detect_animals(make_labels(other, rows), untrained.model_copy(update={"batch_size": 5}), other, settings)
    assert one.digest == two.digest


def test_only_new_images_are_detected(store: Store, settings: Settings, untrained: DetectionsConfig, reported: list[tuple[str, int, int]]) -> None:
    rows = [label_row(store, jpeg(seed=i), f"i{i:02}") for i in range(20)]
    first = detect_animals(make_labels(store, rows), untrained, store, settings)
    reported.clear()
    second = detect_animals(make_labels(store, [*rows, label_row(store, jpeg(seed=99), "new")]), untrained, store, settings)
    assert reported == [("detections", 20, 21), ("detections", 21, 21)]
    before, after = read_boxes(store, first), read_boxes(store, second)
    assert after[after["image_id"] != "new"].reset_index(drop=True).equals(before)


def test_a_killed_run_continues_and_ends_with_the_same_digest(
    tmp_path: Path, store: Store, settings: Settings, untrained: DetectionsConfig, reported: list[tuple[str, int, int]]
) -> None:
    images = [jpeg(160, 120, seed=i) for i in range(60)]
    labels = make_labels(store, [label_row(store, p, f"i{i:02}") for i, p in enumerate(images)])
    child = subprocess.Popen([sys.executable, "-c", RUN_STEP, settings.model_dump_json(), labels.model_dump_json(), untrained.model_dump_json()])
    try:
        shards = _wait_for_shards(settings, 3, child)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not list((Path(settings.store) / "steps").glob("detections/*/manifest.json")), "the child ended before it was killed"
    resumed = detect_animals(labels, untrained, store, settings)
    assert 2 * shards <= reported[0][1] < 60, "images that the killed run detected are not detected again"
    other = open_store(Settings(store=str(tmp_path / "other")))
    fresh = detect_animals(make_labels(other, [label_row(other, p, f"i{i:02}") for i, p in enumerate(images)]), untrained, other, settings)
    assert resumed.digest == fresh.digest


def test_two_workers_share_the_images_and_a_killed_one_loses_only_its_batch(
    store: Store, settings: Settings, untrained: DetectionsConfig, reported: list[tuple[str, int, int]]
) -> None:
    labels = make_labels(store, [label_row(store, jpeg(160, 120, seed=i), f"i{i:02}") for i in range(80)])
    arguments = [settings.model_dump_json(), labels.model_dump_json(), untrained.model_dump_json()]
    killed = subprocess.Popen([sys.executable, "-c", RUN_SHARE, *arguments, "0"])
    try:
        shards = _wait_for_shards(settings, 3, killed)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    other = subprocess.run([sys.executable, "-c", RUN_SHARE, *arguments, "1"], capture_output=True, text=True, check=True)
    shared = int(other.stdout)
    assert 20 < shared < 60
    made = detect_animals(labels, untrained, store, settings)
    assert 2 * shards + shared <= reported[0][1] < 80, "neither worker's images are detected again"
    assert made.counts.kept == 80


def _wait_for_shards(settings: Settings, wanted: int, child: subprocess.Popen[bytes]) -> int:
    """Wait until the index in the store has this many shards; their number comes back."""
    deadline = time.monotonic() + 60
    while (found := len(list(Path(settings.store).rglob("*.jsonl")))) < wanted:
        assert child.poll() is None, "the child ended by itself"
        assert time.monotonic() < deadline, "the child did not start"
        time.sleep(0.005)
    return found


# -- checkpoints


def test_class_names_of_a_checkpoint_become_categories_and_ultralytics_side_effects_are_off(
    store: Store, settings: Settings, untrained: DetectionsConfig
) -> None:
    made = detect_animals(make_labels(store, [label_row(store, jpeg(200, 150))]), untrained, store, settings)
    boxes = read_boxes(store, made)
    assert set(boxes["category"]) <= {"1", "2", "3"}
    assert len(boxes) > 0
    from ultralytics.utils import AUTOINSTALL, ONLINE, events

    assert (AUTOINSTALL, ONLINE, events.events.enabled) == (False, False, False)


class Bomb:
    """The content of a malicious checkpoint: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_does_not_run_without_a_sha256_in_the_plan(
    store: Store, settings: Settings, untrained: DetectionsConfig, tmp_path: Path
) -> None:
    import torch

    torch.save({"model": Bomb(tmp_path / "fired")}, tmp_path / "bomb.pt")
    with pytest.raises(DetectionsError) as refused:
        detect_animals(make_labels(store, [label_row(store, jpeg())]), untrained.model_copy(update={"detector": "bomb.pt"}), store, settings)
    assert refused.value.code == "unsafe_checkpoint"
    assert not (tmp_path / "fired").exists()


def test_a_checkpoint_loads_if_its_sha256_is_the_plans(store: Store, settings: Settings, untrained: DetectionsConfig, checkpoint: Path) -> None:
    labels = make_labels(store, [label_row(store, jpeg())])
    assert detect_animals(labels, untrained.model_copy(update={"sha256": sha256_of(checkpoint)}), store, settings).counts.kept == 1
    with pytest.raises(WeightsError):
        detect_animals(labels, untrained.model_copy(update={"sha256": "3" * 64}), store, settings)


def test_a_file_that_is_not_a_checkpoint_is_refused_in_one_line(
    store: Store, settings: Settings, untrained: DetectionsConfig, tmp_path: Path
) -> None:
    (tmp_path / "letter.pt").write_bytes(b"dear reader")
    with pytest.raises(DetectionsError) as refused:
        detect_animals(make_labels(store, [label_row(store, jpeg())]), untrained.model_copy(update={"detector": "letter.pt"}), store, settings)
    assert refused.value.code == "not_a_checkpoint"
    assert "\n" not in str(refused.value)


def test_a_detector_without_an_animal_class_is_refused(store: Store, settings: Settings, untrained: DetectionsConfig, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "traffic.pt", {0: "bus", 1: "tram"})
    with pytest.raises(DetectionsError, match="bus, tram") as refused:
        detect_animals(make_labels(store, [label_row(store, jpeg())]), untrained.model_copy(update={"detector": "traffic.pt"}), store, settings)
    assert refused.value.code == "no_animal_class"


@pytest.mark.parametrize(
    ("change", "code"), [({"image_size": 650}, "wrong_image_size"), ({"detector": "efficientnet-lite0-imagenet"}, "not_a_detector")]
)
def test_a_plan_that_does_not_fit_the_detector_is_refused_before_anything_runs(
    store: Store, settings: Settings, change: dict[str, Any], code: str
) -> None:
    config = DetectionsConfig(source="detector").model_copy(update=change)
    with pytest.raises(DetectionsError) as refused:
        detect_animals(make_labels(store, [label_row(store, jpeg())]), config, store, settings)
    assert refused.value.code == code


# -- the results file, and MegaDetector Lite


def test_the_written_results_file_passes_megadetectors_own_validator(store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    validator = pytest.importorskip("megadetector.postprocessing.validate_batch_results", reason="the megadetector package is not installed")
    rows = [label_row(store, jpeg(), "a", "o1", BOX), label_row(store, jpeg(seed=1), "b"), label_row(store, b"not an image", "c")]
    made = detect_animals(make_labels(store, rows), untrained.model_copy(update={"source": "auto"}), store, settings)
    outcome = validator.validate_batch_results(str(store.path(made, "megadetector.json")))["validation_results"]
    assert (outcome["errors"], outcome["warnings"]) == ([], [])


def test_megadetector_lite_finds_nothing_in_an_image_of_one_colour(store: Store) -> None:
    labels = make_labels(store, [label_row(store, jpeg(320, 240))])
    made = detect_animals(labels, DetectionsConfig(source="detector"), store, settings_with_megadetector_lite())
    assert made.counts == Counts(kept=1, notes={"images_without_animal": 1}, unit="images")


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="no real images in ANIML_TEST_DATA")
def test_megadetector_lite_finds_most_animals_in_real_images(store: Store) -> None:
    paths = sorted((DATA / "ena24_zamba" / "images").glob("*.jpg"))
    labels = make_labels(store, [label_row(store, p.read_bytes(), p.stem) for p in paths])
    boxes = read_boxes(store, detect_animals(labels, DetectionsConfig(source="detector"), store, settings_with_megadetector_lite()))
    assert boxes["image_id"].nunique() >= 0.9 * len(paths)
    assert (boxes["confidence"] >= 0.25).all()
