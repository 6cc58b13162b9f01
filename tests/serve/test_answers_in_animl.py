"""What Animl makes of the endpoint's answers: which class it shows, and boxes that reach beyond the image."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config import check_plan
from animl_pipeline.core.errors import PackageError, PlanError
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.plan_init.suggest_classes import _class_id
from animl_pipeline.serve.model_worker import best_last
from tests.conftest import colour_model, jpeg
from tests.support.endpoint_process import RunningEndpoint, endpoint_process, ping, post, wait_until
from tests.support.packaged_model import colour_plan_data

COLOURS = {"red": (210, 90, 30), "green": (30, 200, 120), "blue": (90, 60, 200)}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEndpoint]:
    folder = tmp_path_factory.mktemp("serve")
    with endpoint_process(colour_model(folder / "model"), folder / "log") as running:
        wait_until(lambda: ping(running.address) == 200, "/ping answers 200")
        yield running


def labels_in_animl(answer: dict[str, float], threshold: float) -> list[str]:
    """The labels that Animl keeps of an answer, by its own rule. It shows and exports the first one, and one click confirms it."""
    labels: list[str] = []
    for class_id, probability in answer.items():
        if probability >= threshold:
            labels.insert(0, class_id)
    return labels


def ask(live: RunningEndpoint, image: bytes, **fields: Any) -> Any:
    answer = post(live.address, None, json.dumps({"image": base64.b64encode(image).decode(), **fields}).encode())
    return answer.json() if answer.status_code == 200 else answer.status_code


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("threshold", [1e-6, 0.2])
def test_animl_shows_the_most_probable_class(live: RunningEndpoint, colour: str, threshold: float) -> None:
    image = jpeg(colour=COLOURS[colour])
    for answer in (ask(live, image, bbox=[0.1, 0.1, 0.9, 0.9]), *ask(live, image, bboxes=[[0, 0, 1, 1], [0, 0, 0.5, 0.5]])):
        assert labels_in_animl(answer, threshold)[0] == colour == max(answer, key=answer.__getitem__)
        assert list(answer.values()) == sorted(answer.values())


def test_the_order_of_animls_own_example() -> None:
    answer = best_last({"fox": 0.79, "rat": 0.08, "zorro": 0.013, "skunk": 0.117})
    assert labels_in_animl(answer, 1e-6) == ["fox", "skunk", "rat", "zorro"]


@pytest.mark.parametrize("class_id", ["7", "1001", "007"])
def test_a_class_id_that_is_a_whole_number_is_refused(class_id: str, tmp_path: Path) -> None:
    classes = {"red": ["red"], class_id: ["green"]}
    with pytest.raises(PlanError):
        check_plan(colour_plan_data() | {"labels": {"classes": classes}})
    model = colour_model(tmp_path / "model")
    card = (model / "card.json").read_text().replace('"id": "red"', f'"id": "{class_id}"')
    (model / "card.json").write_text(card)
    with pytest.raises(PackageError) as caught:
        Classifier.load(model)
    assert caught.value.code == "wrong_card"
    check_plan(colour_plan_data() | {"labels": {"classes": {"red": ["red"], _class_id(class_id, set()): ["green"]}}})


@pytest.mark.parametrize(
    ("box", "same_as"),
    [
        ([-0.01, 0.2, 0.8, 1.02], [0, 0.2, 0.8, 1]),
        ([0.5, 0.5, 1.0011, 1.4], [0.5, 0.5, 1, 1]),
        ("[-0.3, -0.3, 1.3, 1.3]", [0, 0, 1, 1]),
        ([1.1, 0, 1.5, 1], None),
        ([0, -0.5, 1, 0], None),
        ([0, 0, 300, 200], None),
        ([0.9, 0, 0.1, 1], None),
    ],
)
def test_a_box_that_reaches_beyond_the_image_is_cut_at_its_edges(live: RunningEndpoint, box: Any, same_as: list[float] | None) -> None:
    image = jpeg(colour=COLOURS["red"], seed=3)
    assert ask(live, image, bbox=box) == (ask(live, image, bbox=same_as) if same_as else 400)
