"""The classifier: a real ONNX model and its card, refused when they do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.records import WHOLE_IMAGE, Box
from animl_pipeline.inference.classifier import Classifier, softmax
from tests.conftest import colour_model


def test_it_answers_with_every_class_and_probabilities_that_add_up(tmp_path: Path) -> None:
    answer = Classifier.load(colour_model(tmp_path)).classify(Image.new("RGB", (60, 40), (20, 200, 20)), Box.of([0.4, 0.4, 0.6, 0.6]))
    assert set(answer) == {"red", "green", "blue"}
    assert sum(answer.values()) == pytest.approx(1, abs=1e-6)
    assert max(answer, key=lambda c: answer[c]) == "green"


def test_the_temperature_of_the_card_softens_the_answer(tmp_path: Path) -> None:
    folder = colour_model(tmp_path)
    sharp = Classifier.load(folder)
    soft = Classifier(sharp.card.model_copy(update={"temperature": 4.0}), sharp._session)
    image = Image.new("RGB", (40, 40), (250, 10, 10))
    assert soft.classify(image, WHOLE_IMAGE)["red"] < sharp.classify(image, WHOLE_IMAGE)["red"]


def test_softmax_survives_large_logits() -> None:
    assert softmax(np.array([[1000.0, 1000.0, -1000.0]], np.float32)) == pytest.approx(np.array([[0.5, 0.5, 0.0]]))


def test_a_model_that_the_card_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = colour_model(tmp_path)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\x00")
    with pytest.raises(PackageError, match="is not the model that card"):
        Classifier.load(folder)


@pytest.mark.parametrize("gone", ["model.onnx", "card.json"])
def test_a_missing_part_is_named(tmp_path: Path, gone: str) -> None:
    folder = colour_model(tmp_path)
    (folder / gone).unlink()
    with pytest.raises(PackageError, match="found none"):
        Classifier.load(folder)


def test_a_card_of_another_shape_names_the_field(tmp_path: Path) -> None:
    folder = colour_model(tmp_path)
    (folder / "card.json").write_text('{"model": "x"}', encoding="utf-8")
    with pytest.raises(PackageError, match=r"not a model card of this version: version"):
        Classifier.load(folder)
