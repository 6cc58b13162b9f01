"""The classifier: a real ONNX model and its card, refused when they do not belong together."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from animl_pipeline.core.box_type import WHOLE_IMAGE, Box
from animl_pipeline.core.errors import PackageError
from animl_pipeline.inference.classifier import Classifier, softmax
from tests.conftest import colour_model
from tests.support.packaged_model import with_card


def test_it_gives_every_class_and_probabilities_that_sum_to_one(tmp_path: Path) -> None:
    probabilities = Classifier.load(colour_model(tmp_path)).classify(Image.new("RGB", (60, 40), (20, 200, 20)), Box.of([0.4, 0.4, 0.6, 0.6]))
    assert set(probabilities) == {"red", "green", "blue"}
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert max(probabilities, key=lambda c: probabilities[c]) == "green"


def test_a_higher_temperature_on_the_card_lowers_the_largest_probability(tmp_path: Path) -> None:
    sharp = Classifier.load(colour_model(tmp_path))
    soft = Classifier(sharp.card.model_copy(update={"temperature": 4.0}), sharp._session)
    image = Image.new("RGB", (40, 40), (250, 10, 10))
    assert soft.classify(image, WHOLE_IMAGE)["red"] < sharp.classify(image, WHOLE_IMAGE)["red"]


def test_softmax_does_not_overflow_on_large_logits() -> None:
    assert softmax(np.array([[1000.0, 1000.0, -1000.0]], np.float32)) == pytest.approx(np.array([[0.5, 0.5, 0.0]]))


def test_a_model_with_another_sha256_than_on_the_card_is_refused(tmp_path: Path) -> None:
    folder = colour_model(tmp_path)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\x00")
    with pytest.raises(PackageError) as refused:
        Classifier.load(folder)
    assert refused.value.code == "wrong_model"


@pytest.mark.parametrize("missing", ["model.onnx", "card.json"])
def test_a_missing_file_is_refused(tmp_path: Path, missing: str) -> None:
    folder = colour_model(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(PackageError) as refused:
        Classifier.load(folder)
    assert refused.value.code == "file_missing"


def test_a_card_with_other_fields_is_refused_and_names_the_field(tmp_path: Path) -> None:
    folder = colour_model(tmp_path)
    (folder / "card.json").write_text('{"model": "x"}', encoding="utf-8")
    with pytest.raises(PackageError) as refused:
        Classifier.load(folder)
    assert (refused.value.code, refused.value.details) == ("wrong_card", {"field": "version"})


def test_a_package_without_embeddings_still_answers_and_says_why_it_gives_none(tmp_path: Path) -> None:
    with_embeddings = Classifier.load(colour_model(tmp_path / "new"))
    graph = onnx.load(tmp_path / "new" / "model.onnx")
    del graph.graph.output[1]
    (tmp_path / "new" / "model.onnx").write_bytes(graph.SerializeToString())
    sha256 = hashlib.sha256((tmp_path / "new" / "model.onnx").read_bytes()).hexdigest()
    old = Classifier.load(with_card(tmp_path / "new", onnx_sha256=sha256))
    inputs = np.zeros((2, 3, 32, 32), np.float32)
    assert (with_embeddings.has_embeddings(), old.has_embeddings()) == (True, False)
    np.testing.assert_array_equal(old.probabilities(inputs), with_embeddings.probabilities(inputs))
    with pytest.raises(PackageError) as refused:
        old.probabilities_and_embeddings(inputs)
    assert refused.value.code == "no_embeddings"
