"""The package step: a reproducible archive, checked before it ships, and errors for models that must not ship."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.evaluation_results import Metrics
from animl_pipeline.core.model_card import Agreement
from animl_pipeline.core.release_and_reference_types import ReferencePrediction
from animl_pipeline.inference.classifier import Classifier, read_card
from animl_pipeline.steps.package import package_model
from animl_pipeline.steps.package.step import render_model_card
from animl_pipeline.storage.store import Store, open_store
from tests.conftest import jpeg
from tests.support.packaged_model import colour_plan, make_evaluation, make_package, make_training


def test_the_package_has_a_working_classifier_and_a_card_with_metrics(store: Store, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    with tarfile.open(store.path(package, "model.tar.gz")) as archive:
        assert archive.getnames() == ["card.json", "model.onnx"]
        archive.extractall(tmp_path / "unpacked", filter="data")
    classifier = Classifier.load(tmp_path / "unpacked")
    assert classifier.card.metrics["macro_f1"] == 1.0
    assert store.path(package, "card.json").read_bytes() == (tmp_path / "unpacked" / "card.json").read_bytes()
    reference = [ReferencePrediction.model_validate(row) for row in json.loads(store.path(package, "reference_predictions.json").read_text())]
    assert [p.image for p in reference] == ["00.jpg", "01.jpg", "02.jpg"]
    for expected in reference:
        image = open_image(store.path(package, f"reference_predictions/{expected.image}").read_bytes())
        assert classifier.classify(image, expected.box) == pytest.approx(expected.probabilities, abs=1e-5)


def test_text_of_the_plan_and_the_export_is_no_markup_in_the_model_card(store: Store, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    hostile = "[x](javascript:alert(1)) <script>"
    card = read_card(store.path(package, "card.json"))
    metrics = Metrics.model_validate(card.metrics)
    classes = [c.model_copy(update={"id": hostile}) for c in metrics.classes]
    hostile_fields = dict.fromkeys(("model", "version", "architecture", "weights"), hostile)
    changed = card.model_copy(update=hostile_fields | {"plan": {"sources": [hostile]}})
    page = render_model_card(changed, metrics.model_copy(update={"classes": classes, "reasons": [hostile], "verdict": "hold"}), hostile)
    tokens = [token for block in MarkdownIt("commonmark", {"html": True}).enable("table").parse(page) for token in [block, *(block.children or ())]]
    assert {token.type for token in tokens} & {"link_open", "html_inline", "html_block", "image"} == set()
    assert "".join(token.content for token in tokens if token.type in {"text", "text_special"}).count(hostile) >= 7


def test_the_same_model_gives_the_same_digest_in_another_store(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.append(make_package(open_store(Settings(store=str(tmp_path / name / "store"))), tmp_path / name).digest)
    assert digests[0] == digests[1]


def test_a_package_is_cached(store: Store, tmp_path: Path) -> None:
    assert not make_package(store, tmp_path).cached
    assert make_package(store, tmp_path).cached


def test_images_too_large_for_a_request_are_dropped_and_counted(store: Store, tmp_path: Path) -> None:
    model = make_training(store, tmp_path)
    large = jpeg() + b"\0" * 2_800_000
    package = package_model(model, make_evaluation(store, model, tmp_path, [large, jpeg(seed=5)]), colour_plan().package, store)
    assert package.counts.kept == 1
    assert package.counts.dropped == {"image_too_large_for_a_request": 1}


def error_code(make: Callable[[], Artifact]) -> str:
    with pytest.raises(PackageError) as caught:
        make()
    return caught.value.code


@pytest.mark.parametrize(
    ("agreement", "code"),
    [(Agreement(max_abs=0.5, crops=9), "torch_and_onnx_differ"), (Agreement(max_abs=0, crops=0), "not_compared")],
)
def test_a_model_without_agreement_of_torch_and_onnx_is_an_error(store: Store, tmp_path: Path, agreement: Agreement, code: str) -> None:
    assert error_code(lambda: make_package(store, tmp_path, agreement=agreement)) == code


def test_a_model_that_is_not_the_one_of_its_card_is_an_error(store: Store, tmp_path: Path) -> None:
    evaluation = make_evaluation(store, make_training(store, tmp_path), tmp_path)
    other = make_training(store, tmp_path, onnx_sha256="0" * 64)
    assert error_code(lambda: package_model(other, evaluation, colour_plan().package, store)) == "other_model"


@pytest.mark.parametrize(
    ("evaluation", "code"),
    [
        ({"classes": ("red", "green", "yellow")}, "other_classes"),
        ({"shift": 0.001}, "reference_differs"),
        ({"images": []}, "no_reference_predictions"),
    ],
)
def test_an_evaluation_that_does_not_match_the_model_is_an_error(store: Store, tmp_path: Path, evaluation: dict[str, Any], code: str) -> None:
    model = make_training(store, tmp_path)
    assert error_code(lambda: package_model(model, make_evaluation(store, model, tmp_path, **evaluation), colour_plan().package, store)) == code
