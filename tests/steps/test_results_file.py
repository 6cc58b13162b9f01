"""MegaDetector results files of other tools: old formats, names of other systems, unusable boxes, and files that are something else."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.steps.detections.match_results_by_path import match_by_path
from animl_pipeline.storage.store import Store
from tests.conftest import jpeg
from tests.support.detectors import label_row, make_labels, read_boxes, read_failures, write_results

BOX = [0.2, 0.1, 0.5, 0.4]
FOX: dict[str, Any] = {"category": "1", "conf": 0.8, "bbox": BOX}


def use_results(folder: Path, images: Any, **more: Any) -> DetectionsConfig:
    return DetectionsConfig(source="results", results=write_results(folder, images, **more), detector="nowhere.pt")


def run_step(store: Store, settings: Settings, config: DetectionsConfig, *file_names: str) -> Artifact:
    rows = [label_row(store, jpeg(seed=i), f"i{i}", file_name=name) for i, name in enumerate(file_names)]
    return detect_animals(make_labels(store, rows), config, store, settings)


def test_images_match_by_file_name_and_reviewed_boxes_stay(store: Store, settings: Settings, tmp_path: Path) -> None:
    images = [
        {"file": "island\\a.jpg", "detections": [FOX, {"category": "2", "conf": 0.9, "bbox": [0, 0, 0.1, 0.1]}]},
        {"file": "b.jpg", "failure": "image access failure", "detections": None},
        {"file": "d.jpg", "detections": [FOX | {"conf": 0.05}]},
    ]
    config = use_results(tmp_path, images)
    rows = [label_row(store, jpeg(seed=i), name) for i, name in enumerate("abcd")]
    rows.append(label_row(store, jpeg(seed=9), "e", "o5", (0.1, 0.2, 0.5, 0.6)))
    labels = make_labels(store, rows)
    made = detect_animals(labels, config, store, settings)
    assert [(r.image_id, r.origin, r.category, r.ymin, r.xmin, r.ymax, r.xmax) for r in read_boxes(store, made).itertuples()] == [
        ("a", "detector", "2", 0.0, 0.0, 0.1, 0.1),
        ("a", "detector", "1", 0.1, 0.2, 0.5, 0.7),
        ("e", "annotation", "1", 0.1, 0.2, 0.5, 0.6),
    ]
    assert read_failures(store, made) == {"b": "failed_in_results", "c": "not_in_results"}
    assert made.counts.notes["images_without_animal"] == 1
    write_results(tmp_path, images[:1])
    assert detect_animals(labels, config, store, settings).key != made.key


# -- whose results they are

CAM = {"s": "data/2023/cam1"}


@pytest.mark.parametrize(
    ("name", "files", "found"),
    [
        ("IMG_1.JPG", ["IMG_1.JPG"], "IMG_1.JPG"),
        ("IMG_1.JPG", ["s/IMG_1.JPG", "IMG_1.JPG"], "s/IMG_1.JPG"),
        ("IMG_1.JPG", ["cam1/IMG_1.JPG", "cam2/IMG_1.JPG"], "cam1/IMG_1.JPG"),
        ("IMG_1.JPG", ["C:/photos/cam1/IMG_1.JPG"], "C:/photos/cam1/IMG_1.JPG"),
        ("IMG_1.JPG", ["/home/me/data/2023/cam1/IMG_1.JPG", "/home/me/data/2022/cam1/IMG_1.JPG"], "/home/me/data/2023/cam1/IMG_1.JPG"),
        ("IMG_1.JPG", ["cam2/IMG_1.JPG"], "other_folder_in_results"),
        ("IMG_1.JPG", ["/cards/IMG_1.JPG"], "other_folder_in_results"),
        ("IMG_1.JPG", ["2024/cam1/IMG_1.JPG", "2022/cam1/IMG_1.JPG"], "several_in_results"),
        ("IMG_1.JPG", ["IMG_2.JPG"], "not_in_results"),
        ("a/IMG_1.JPG", ["IMG_1.JPG"], "not_in_results"),
        ("a/IMG_1.JPG", ["/cards/a/IMG_1.JPG"], "/cards/a/IMG_1.JPG"),
        ("a/IMG_1.JPG", ["/cards/a/IMG_1.JPG", "/old/a/IMG_1.JPG"], "several_in_results"),
        ("a/IMG_1.JPG", ["cards/a/IMG_1.JPG"], "other_folder_in_results"),
        ("a/IMG_1.JPG", ["/cards/cam2/a/IMG_1.JPG"], "other_folder_in_results"),
        ("a/IMG_1.JPG", ["/cards/north/a/IMG_1.JPG"], "other_folder_in_results"),
    ],
)
def test_results_belong_to_an_image_only_where_no_folder_contradicts(name: str, files: list[str], found: str) -> None:
    matches = match_by_path([("s", name)], files, CAM | {"t": "data/north"}, {})
    assert (matches.files | matches.reasons)["s", name] == found


def test_a_result_is_never_that_of_two_sources_images() -> None:
    names, folders = [("y23", "IMG_1.JPG"), ("y24", "IMG_1.JPG")], {"y23": "photos/2023/cam1", "y24": "photos/2024/cam1"}
    one = match_by_path(names, ["/photos/2024/cam1/IMG_1.JPG"], folders, {})
    assert one.files == {names[1]: "/photos/2024/cam1/IMG_1.JPG"}
    assert one.reasons == {names[0]: "several_in_results"}
    bare = match_by_path(names, ["IMG_1.JPG"], folders, {})
    assert (bare.files, bare.reasons) == ({}, dict.fromkeys(names, "several_in_results"))
    said = match_by_path(names, ["IMG_1.JPG"], folders, {"y24": ""})
    assert said.files == {names[1]: "IMG_1.JPG"}
    same = match_by_path(names, ["IMG_1.JPG"], dict.fromkeys(folders, "photos/both"), {})
    assert len(same.files) == 2


def test_the_plan_may_say_where_a_sources_images_begin_in_the_results() -> None:
    names, files = [("s", "IMG_1.JPG"), ("t", "IMG_1.JPG"), ("u", "IMG_1.JPG")], ["cam2/IMG_1.JPG", "x/cam3/IMG_1.JPG", "IMG_1.JPG"]
    matches = match_by_path(names, files, CAM, {"s": "cam2", "t": "x\\cam3/", "u": "cam9"})
    assert matches.files == {("s", "IMG_1.JPG"): "cam2/IMG_1.JPG", ("t", "IMG_1.JPG"): "x/cam3/IMG_1.JPG"}
    assert matches.reasons == {("u", "IMG_1.JPG"): "not_in_results"}


def test_images_elsewhere_are_matched_only_if_all_are_below_one_folder() -> None:
    names = [("s", "a/1.jpg"), ("s", "b/1.jpg")]
    assert match_by_path(names, ["/x/a/1.jpg", "/x/b/1.jpg"], CAM, {}).files == {names[0]: "/x/a/1.jpg", names[1]: "/x/b/1.jpg"}
    assert match_by_path(names, ["/x/a/1.jpg", "/y/b/1.jpg"], CAM, {}).reasons == dict.fromkeys(names, "several_in_results")


def test_results_of_another_camera_are_refused_and_the_plan_can_say_that_they_are_its_own(store: Store, settings: Settings, tmp_path: Path) -> None:
    images = [{"file": f"cam2/IMG_{i}.JPG", "detections": [FOX]} for i in range(3)]
    config, names = use_results(tmp_path, images), [f"IMG_{i}.JPG" for i in range(3)]
    labels = make_labels(store, [label_row(store, jpeg(seed=i), f"i{i}", file_name=name) for i, name in enumerate(names)])
    with pytest.raises(DetectionsError) as refused:
        detect_animals(labels, config, store, settings, {"island": "cards/cam1"})
    assert (refused.value.code, refused.value.details) == ("folders_contradict", {"wanted": "IMG_0.JPG", "found": "cam2/IMG_0.JPG"})
    assert "{island: cam2}" in str(refused.value)
    assert detect_animals(labels, config, store, settings, {"island": "cards/cam2"}).counts.kept == 3
    mapped = config.model_copy(update={"results_folders": {"island": "cam2"}})
    assert detect_animals(labels, mapped, store, settings, {"island": "cards/cam1"}).counts.kept == 3


def test_names_match_with_windows_folders_and_other_accents(store: Store, settings: Settings, tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café.jpg")
    files = ["/mnt/cards\\one\\a.jpg", "/mnt/cards/two/b.jpg", f"./{decomposed}", "island/d.jpg"]
    config = use_results(tmp_path, [{"file": f, "detections": [FOX]} for f in files])
    made = run_step(store, settings, config, "one\\a.jpg", "two/b.jpg", "café.jpg", "d.jpg")
    assert (len(read_boxes(store, made)), read_failures(store, made)) == (4, {})


def test_categories_of_other_tools_are_understood(store: Store, settings: Settings, tmp_path: Path) -> None:
    categories = {"1": "Animal", "2": "humain", "3": "u;;;;;;vehicle", "4": "licence plate"}
    found = [FOX | {"category": str(i), "bbox": [i / 10, 0.1, 0.1, 0.1]} for i in (1, 2, 3, 4)]
    made = run_step(store, settings, use_results(tmp_path, [{"file": "a.jpg", "detections": found}], detection_categories=categories), "a.jpg")
    assert sorted(read_boxes(store, made)["category"]) == ["1", "2", "3"]


def test_an_image_without_a_list_of_detections_has_failed_in_every_version_of_the_format(store: Store, settings: Settings, tmp_path: Path) -> None:
    config = use_results(
        tmp_path,
        [{"file": "a.jpg", "detections": None}, {"file": "b.jpg"}, {"file": "c.jpg", "failure": None, "detections": []}],
        info={"format_version": "1.0"},
    )
    made = run_step(store, settings, config, "a.jpg", "b.jpg", "c.jpg")
    assert read_failures(store, made) == {"i0": "failed_in_results", "i1": "failed_in_results"}
    assert made.counts.notes["images_without_animal"] == 1


def test_unusable_boxes_are_counted_and_boxes_are_clipped_to_the_image(store: Store, settings: Settings, tmp_path: Path) -> None:
    nan = float("nan")
    unusable = [[0.5, 0.5, -0.1, 0.1], [0.5, 0.5, 0, 0.1], [0.5, 0.5, 1e-9, 0.1], [nan, 0, 0.5, 0.5], [0.1, nan, 0.1, 0.1], [1.2, 0, 0.1, 0.1]]
    found = [FOX | {"bbox": box} for box in unusable] + [FOX | {"bbox": [0.9, -0.05, 0.2, 0.5]}, FOX | {"conf": nan}]
    made = run_step(store, settings, use_results(tmp_path, [{"file": "a.jpg", "detections": found}]), "a.jpg")
    assert made.counts.notes["unusable_boxes"] == len(unusable) + 1
    assert [[r.ymin, r.xmin, r.ymax, r.xmax] for r in read_boxes(store, made).itertuples()] == [[0, 0.9, 0.45, 1]]


def test_two_entries_for_one_image_are_merged(store: Store, settings: Settings, tmp_path: Path) -> None:
    other = FOX | {"bbox": [0, 0, 0.1, 0.1]}
    entries: list[dict[str, Any]] = [{"detections": [FOX]}, {"detections": [FOX, other]}, {"detections": None, "failure": "image access failure"}]
    made = run_step(store, settings, use_results(tmp_path, [{"file": "a.jpg"} | e for e in entries]), "a.jpg")
    assert len(read_boxes(store, made)) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": [{"file": "a.jpg", "detections": [FOX | {"bbox": [100, 200, 300, 400]}]}]}, "a.jpg: expected boxes"),
        ({"images": [{"file": "a.jpg", "detections": [FOX | {"bbox": BOX[:3]}]}]}, "a.jpg: expected boxes"),
        ({"images": [{"file": "a.jpg", "detections": [FOX | {"conf": 87}]}]}, "a.jpg: expected confidences"),
        ({"images": [{"file": "a.jpg", "detections": [FOX | {"category": "9"}]}]}, "a.jpg: category '9'"),
        ({"images": [{"file": "a.jpg", "detections": [{"conf": 1}]}]}, "no 'category'"),
        ({"detection_categories": {"1": "deer"}}, "expected a detection category named animal, found deer"),
        ({"detection_categories": ["animal"]}, "expected detection_categories"),
        ({"images": None}, "expected images"),
    ],
)
def test_a_file_that_breaks_the_format_is_refused_with_the_reason(
    store: Store, settings: Settings, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    config = use_results(tmp_path, **({"images": [{"file": "a.jpg", "detections": [FOX]}]} | change))
    with pytest.raises(DetectionsError) as refused:
        run_step(store, settings, config, "a.jpg")
    assert refused.value.code == "wrong_format"
    assert refused.value.details["reason"].startswith(reason)


@pytest.mark.parametrize("content", ["not json", "[]", "{}", '{"images": 3}', "[" * 200_000], ids=["text", "list", "object", "number", "nested"])
def test_a_file_that_is_not_a_results_file_is_refused_in_one_line(store: Store, settings: Settings, tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content, encoding="utf-8")
    with pytest.raises(DetectionsError) as refused:
        run_step(store, settings, DetectionsConfig(source="results", results="r.json"), "a.jpg")
    assert refused.value.code == "wrong_format"
    assert "\n" not in str(refused.value)


def test_results_of_other_images_are_refused_unless_people_drew_all_boxes(store: Store, settings: Settings, tmp_path: Path) -> None:
    config = use_results(tmp_path, [{"file": "card/x.jpg", "detections": []}])
    with pytest.raises(DetectionsError) as refused:
        run_step(store, settings, config, "a.jpg", "b.jpg")
    assert (refused.value.code, refused.value.details) == ("other_images", {"wanted": "a.jpg", "found": "card/x.jpg"})
    reviewed = make_labels(store, [label_row(store, jpeg(), box=(0.1, 0.1, 0.5, 0.5))])
    assert detect_animals(reviewed, config, store, settings).counts.kept == 1


def test_the_confidence_is_the_plans_else_the_files_else_a_quarter(store: Store, settings: Settings, tmp_path: Path) -> None:
    images = [{"file": "a.jpg", "detections": [FOX | {"conf": c, "bbox": [c / 2, 0, 0.1, 0.1]} for c in (0.05, 0.15, 0.24, 0.3)]}]
    metadata = {"format_version": "1.4", "detector_metadata": {"typical_detection_threshold": 0.1}}
    config = use_results(tmp_path, images, info=metadata)
    assert len(read_boxes(store, run_step(store, settings, config, "a.jpg"))) == 3
    assert len(read_boxes(store, run_step(store, settings, config.model_copy(update={"confidence": 0.2}), "a.jpg"))) == 2
    assert len(read_boxes(store, run_step(store, settings, use_results(tmp_path, images), "a.jpg"))) == 1
