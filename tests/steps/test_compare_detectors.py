"""Other views of an image for MegaDetector Lite, and detectors compared on reviewed boxes and empty images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from animl_pipeline.cli.compare_detectors import compare
from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.detections_and_crops import DetectorView
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.write_megadetector_results import ANIMAL, PERSON
from animl_pipeline.steps.detections.choose_detector import choose_detector
from animl_pipeline.steps.detections.compare_detectors import read_reviewed_images, score_detector
from animl_pipeline.steps.detections.detector import NetworkInput
from animl_pipeline.steps.detections.inference_backend import LoadedNetwork
from animl_pipeline.steps.detections.yolox_lite import YoloxLite
from animl_pipeline.storage.store import Store
from tests.conftest import jpeg
from tests.support.detectors import label_row, make_labels, settings_with_megadetector_lite
from tests.support.tiny_project import write_project

SIZE = 64


def find_bright(pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """A network with the weaknesses that views help against: it sees bright rectangles in the right half, at most 40 pixels wide."""
    rows = np.zeros((len(pixels), 1, 6), np.float32)
    for i, image in enumerate(pixels):
        y, x = np.nonzero(image[..., 0] >= 120)
        if len(x) and x.max() - x.min() <= 40 and x.min() + x.max() >= SIZE - 8:
            width, height = x.max() - x.min() + 1, y.max() - y.min() + 1
            rows[i, 0] = [x.min() + width / 2, y.min() + height / 2, width, height, 0.9, 1.0]
    return [rows]


@pytest.mark.parametrize(
    ("view", "brightness", "box"),
    [
        ("mirror", 255, (10, 4, 20, 16)),  # in the left half
        ("gamma", 90, (10, 44, 20, 56)),  # dark
        ("half_size", 255, (0, 0, 48, 64)),  # fills the frame
    ],
)
def test_a_view_finds_what_the_image_alone_does_not_show_and_its_box_is_that_of_the_image(
    view: DetectorView, brightness: int, box: tuple[int, int, int, int]
) -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    top, left, bottom, right = box
    pixels[top:bottom, left:right] = brightness
    seen = NetworkInput(pixels, 0, 0, SIZE, 48)  # an image of 64 x 48 with padding below
    network = LoadedNetwork(find_bright, {}, batched=False)
    assert YoloxLite(network, SIZE, 0.25).predict([seen]) == [[]]
    ((found,),) = YoloxLite(network, SIZE, 0.25, [view]).predict([seen])
    assert found[2:] == pytest.approx((top / 48, left / SIZE, bottom / 48, right / SIZE), abs=0.05)


def test_what_several_views_find_is_one_detection() -> None:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[10:20, 30:40] = 255
    found = YoloxLite(LoadedNetwork(find_bright, {}, batched=False), SIZE, 0.25, ["mirror", "gamma"]).predict(
        [NetworkInput(pixels, 0, 0, SIZE, SIZE)]
    )
    assert [len(f) for f in found] == [1]


def test_views_are_part_of_what_is_remembered_and_only_for_megadetector_lite(settings: Settings) -> None:
    plain, more = (choose_detector(DetectionsConfig(views=views), settings) for views in ((), ("mirror",)))
    assert plain.index_name() != more.index_name()
    assert "views" not in DetectionsConfig().model_dump()
    with pytest.raises(DetectionsError) as caught:
        choose_detector(DetectionsConfig(detector="megadetector-v6-yolov10-c", sha256="0" * 64, views=("mirror",)), settings)
    assert caught.value.code == "no_views"


def test_recall_by_size_light_and_location_and_false_alarms_on_empty_images(store: Store) -> None:
    settings, config = settings_with_megadetector_lite(), DetectionsConfig()
    colour, grey, empty, other = jpeg(colour=(200, 60, 60)), jpeg(colour=(90, 90, 90)), jpeg(seed=3), jpeg(seed=4)
    rows = [
        label_row(store, colour, "a", "1", (0.1, 0.1, 0.3, 0.2)),
        label_row(store, colour, "a", "2", (0.0, 0.0, 1.0, 1.0)),
        label_row(store, grey, "b", "3", (0.5, 0.5, 0.55, 0.55), location="island/P2"),
        label_row(store, empty, "c", "4", class_id="nothing"),
        label_row(store, other, "d", "5", class_id="nothing"),
    ]
    images = read_reviewed_images(make_labels(store, rows), "nothing", 10, store, settings)
    boxes = [[ANIMAL, 0.9, 0.1, 0.1, 0.3, 0.21], [ANIMAL, 0.8, 0.1, 0.1, 0.3, 0.2], [PERSON, 0.9, 0.5, 0.5, 0.55, 0.55]]
    known = {colour: boxes[:2], grey: boxes[2:], empty: boxes[:1], other: boxes[2:]}
    store.add_to_index(choose_detector(config, settings).index_name(), {store.put_blob(data): {"boxes": of} for data, of in known.items()})
    scores = score_detector(images, config, store, settings)
    assert (scores.all.boxes, scores.all.found) == (3, 1)
    assert {name.split(" (")[0]: (of.boxes, of.found) for name, of in scores.by["size"].items()} == {
        "small": (1, 0), "medium": (1, 1), "fills the frame": (1, 0)
    }  # fmt: skip
    assert {name: of.recall() for name, of in scores.by["light"].items()} == {"colour": 0.5, "infrared": 0.0}
    assert (scores.mean_recall_of_locations, scores.false_alarms_per_1000()) == (0.25, 500)
    assert scores.cpu_s_per_image > 0
    with pytest.raises(DetectionsError) as caught:
        read_reviewed_images(make_labels(store, rows[3:]), "nothing", 10, store, settings)
    assert caught.value.code == "no_reviewed_box"


def test_the_command_prints_the_scores_of_each_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings_with_megadetector_lite()
    plan = write_project(tmp_path, locations=1, each=1)
    names = ["megadetector-lite", "megadetector-lite+half_size"]
    compare(str(plan), names, max_images=2, empty=0, as_json=True, store=str(tmp_path / "store"), data=tmp_path)
    printed = json.loads(capsys.readouterr().out)
    assert [(s["name"], s["all"]["boxes"], s["empty_images"]) for s in printed] == [(n.replace("+", " + "), 2, 0) for n in names]
