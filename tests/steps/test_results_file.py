"""MegaDetector results files of other tools: old formats, names written elsewhere, boxes that are none, and files of something else."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.storage.step_cache import Store
from tests.conftest import jpeg
from tests.steps.test_detections import boxes_of, class_id, labels_of

BOX = [0.2, 0.1, 0.5, 0.4]
FOX: dict[str, Any] = {"category": "1", "conf": 0.8, "bbox": BOX}


def write(folder: Path, images: Any, **more: Any) -> DetectionsConfig:
    """A plan with a results file of these images."""
    content = {"info": {"format_version": "1.3"}, "detection_categories": {"1": "animal", "2": "person"}, "images": images} | more
    (folder / "r.json").write_text(json.dumps(content), encoding="utf-8")
    return DetectionsConfig(source="results", results="r.json")


def looked(store: Store, settings: Settings, spec: DetectionsConfig, *names: str) -> Artifact:
    rows = [class_id(store, jpeg(seed=i), f"i{i}", file_name=name) for i, name in enumerate(names)]
    return detect_animals(labels_of(store, rows), spec, store, settings)


def failures(store: Store, made: Artifact) -> dict[str, str]:
    table = store.table(made, "failures.parquet")
    return dict(zip(table["image_id"], table["reason"], strict=True))


def test_a_image_without_a_list_of_detections_has_failed_whatever_the_format_called_that(store: Store, settings: Settings, tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        [{"file": "a.jpg", "detections": None}, {"file": "b.jpg"}, {"file": "c.jpg", "failure": None, "detections": []}],
        info={"format_version": "1.0"},
    )
    made = looked(store, settings, spec, "a.jpg", "b.jpg", "c.jpg")
    assert failures(store, made) == {"i0": "failed_in_results", "i1": "failed_in_results"}
    assert made.counts.noted["images_without_animal"] == 1


def test_boxes_without_area_or_numbers_are_counted_and_what_reaches_past_the_image_ends_there(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    nan = float("nan")
    odd = [[0.5, 0.5, -0.1, 0.1], [0.5, 0.5, 0, 0.1], [0.5, 0.5, 1e-9, 0.1], [nan, 0, 0.5, 0.5], [0.1, nan, 0.1, 0.1], [1.2, 0, 0.1, 0.1]]
    found = [FOX | {"bbox": box} for box in odd] + [FOX | {"bbox": [0.9, -0.05, 0.2, 0.5]}, FOX | {"conf": nan}]
    made = looked(store, settings, write(tmp_path, [{"file": "a.jpg", "detections": found}]), "a.jpg")
    assert made.counts.noted["unusable_boxes"] == len(odd) + 1
    assert [[r.ymin, r.xmin, r.ymax, r.xmax] for r in boxes_of(store, made).itertuples()] == [[0, 0.9, 0.45, 1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": [{"file": "a.jpg", "detections": [FOX | {"bbox": [100, 200, 300, 400]}]}]}, r"a\.jpg: expected boxes as \[x, y, width, height\]"),
        ({"images": [{"file": "a.jpg", "detections": [FOX | {"bbox": BOX[:3]}]}]}, r"a\.jpg: expected boxes as \[x, y, width, height\]"),
        ({"images": [{"file": "a.jpg", "detections": [FOX | {"conf": 87}]}]}, r"a\.jpg: expected confidences from 0 to 1, found 87"),
        ({"images": [{"file": "a.jpg", "detections": [FOX | {"category": "9"}]}]}, r"a\.jpg: category '9' is not in detection_categories"),
        ({"detection_categories": {"1": "deer"}}, "expected a detection category named animal, found deer"),
        ({"detection_categories": ["animal"]}, "expected detection_categories as an object"),
        ({"images": None}, "expected images as a list"),
    ],
)
def test_what_the_format_does_not_allow_is_one_line_that_names_it(
    store: Store, settings: Settings, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    spec = write(tmp_path, **({"images": [{"file": "a.jpg", "detections": [FOX]}]} | change))
    with pytest.raises(
        DetectionsError, match=rf"detections\.results: r\.json is no MegaDetector results file \({said}.*mend detections\.results"
    ) as no:
        looked(store, settings, spec, "a.jpg")
    assert "\n" not in str(no.value)


def test_a_file_of_endless_brackets_is_one_line(store: Store, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(DetectionsError, match=r"r\.json is no MegaDetector results file"):
        looked(store, settings, DetectionsConfig(source="results", results="r.json"), "a.jpg")


def test_names_match_whoever_wrote_their_folders_and_accents(store: Store, settings: Settings, tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "café.jpg")
    files = ["C:\\cards\\one\\a.jpg", "/mnt/cards/two/b.jpg", f"./{apart}", "island/d.jpg"]
    made = looked(store, settings, write(tmp_path, [{"file": f, "detections": [FOX]} for f in files]), "one\\a.jpg", "two/b.jpg", "café.jpg", "d.jpg")
    assert (len(boxes_of(store, made)), failures(store, made)) == (4, {})


def test_a_image_that_a_file_has_twice_keeps_what_either_entry_found(store: Store, settings: Settings, tmp_path: Path) -> None:
    other = FOX | {"bbox": [0, 0, 0.1, 0.1]}
    entries: list[dict[str, Any]] = [{"detections": [FOX]}, {"detections": [FOX, other]}, {"detections": None, "failure": "image access failure"}]
    made = looked(store, settings, write(tmp_path, [{"file": "a.jpg"} | e for e in entries]), "a.jpg")
    assert len(boxes_of(store, made)) == 2


def test_a_file_of_other_images_is_told_with_a_name_of_each(store: Store, settings: Settings, tmp_path: Path) -> None:
    spec = write(tmp_path, [{"file": "card/x.jpg", "detections": []}])
    with pytest.raises(
        DetectionsError, match=r"expected results of the labels' pictures, such as a\.jpg, found those of 1 others, such as card/x\.jpg"
    ):
        looked(store, settings, spec, "a.jpg", "b.jpg")
    reviewed = labels_of(store, [class_id(store, jpeg(), box=(0.1, 0.1, 0.5, 0.5))])
    assert detect_animals(reviewed, spec, store, settings).counts.kept == 1, "where people drew all boxes it does not matter"


def test_the_confidence_is_the_plans_or_else_the_one_that_the_file_names_for_its_detector(store: Store, settings: Settings, tmp_path: Path) -> None:
    found = [FOX | {"conf": c, "bbox": [c / 2, 0, 0.1, 0.1]} for c in (0.05, 0.15, 0.24, 0.3)]
    metadata = {"format_version": "1.4", "detector_metadata": {"typical_detection_threshold": 0.1}}
    spec = write(tmp_path, [{"file": "a.jpg", "detections": found}], info=metadata)
    assert len(boxes_of(store, looked(store, settings, spec, "a.jpg"))) == 3
    assert len(boxes_of(store, looked(store, settings, spec.model_copy(update={"confidence": 0.2}), "a.jpg"))) == 2
    spec = write(tmp_path, [{"file": "a.jpg", "detections": found}])
    assert len(boxes_of(store, looked(store, settings, spec, "a.jpg"))) == 1, "0.25 where nobody says"
