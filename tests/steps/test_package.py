"""The package: the same bytes each time, proven before it ships, refused with one line where it is not fit."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PackageError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.core.records import Agreement, Answer, Artifact
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.steps.package import package_model
from animl_pipeline.storage.step_cache import Store, open_store
from tests.conftest import jpeg
from tests.support.packaged_model import colour_plan, evaluation_step, model_step, package_of


def test_the_package_holds_a_classifier_that_answers_and_a_card_with_metrics(store: Store, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    with tarfile.open(store.path(package, "model.tar.gz")) as archive:
        assert archive.getnames() == ["card.json", "model.onnx"]
        archive.extractall(tmp_path / "unpacked", filter="data")
    classifier = Classifier.load(tmp_path / "unpacked")
    assert classifier.card.metrics["macro_f1"] == 1.0
    assert store.path(package, "card.json").read_bytes() == (tmp_path / "unpacked" / "card.json").read_bytes()
    answers = [Answer.model_validate(row) for row in json.loads(store.path(package, "reference.json").read_text())]
    assert [a.image for a in answers] == ["00.jpg", "01.jpg", "02.jpg"]
    for expected in answers:
        image = open_image(store.path(package, f"reference/{expected.image}").read_bytes())
        assert classifier.classify(image, expected.box) == pytest.approx(expected.probabilities, abs=1e-5)


def test_the_same_model_gives_the_same_bytes_in_another_store(tmp_path: Path) -> None:
    digests = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        digests.append(package_of(open_store(Settings(store=str(tmp_path / name / "store"))), tmp_path / name).digest)
    assert digests[0] == digests[1]


def test_a_package_that_is_there_is_not_made_again(store: Store, tmp_path: Path) -> None:
    assert not package_of(store, tmp_path).cached
    assert package_of(store, tmp_path).cached


def test_reference_images_too_large_for_a_request_are_left_out_and_counted(store: Store, tmp_path: Path) -> None:
    model = model_step(store, tmp_path)
    large = jpeg() + b"\0" * 2_800_000
    package = package_model(model, evaluation_step(store, model, tmp_path, [large, jpeg(seed=5)]), colour_plan(), store)
    assert package.counts.kept == 1
    assert package.counts.dropped == {"image_too_large_for_a_request": 1}


Refused = tuple[str, Callable[[Store, Path], Artifact]]
REFUSED: dict[str, Refused] = {
    "torch and ONNX differ": ("differ by 0.5", lambda s, f: package_of(s, f, agreement=Agreement(max_abs=0.5, crops=9))),
    "torch and ONNX were not compared": ("on 0 crops", lambda s, f: package_of(s, f, agreement=Agreement(max_abs=0, crops=0))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_did_not_agree_is_refused(store: Store, tmp_path: Path, what: str) -> None:
    reason, make = REFUSED[what]
    with pytest.raises(PackageError, match=reason):
        make(store, tmp_path)


def test_a_model_that_is_not_its_cards_is_refused(store: Store, tmp_path: Path) -> None:
    good = model_step(store, tmp_path)
    evaluation = evaluation_step(store, good, tmp_path)
    with pytest.raises(PackageError, match=r"expected model\.onnx with sha256 00000000"):
        package_model(model_step(store, tmp_path, onnx_sha256="0" * 64), evaluation, colour_plan(), store)


def test_metrics_of_other_classes_are_refused(store: Store, tmp_path: Path) -> None:
    model = model_step(store, tmp_path)
    with pytest.raises(PackageError, match="metrics are of the classes"):
        package_model(model, evaluation_step(store, model, tmp_path, classes=("red", "green", "yellow")), colour_plan(), store)


def test_a_package_that_does_not_give_its_reference_answers_again_is_refused(store: Store, tmp_path: Path) -> None:
    model = model_step(store, tmp_path)
    with pytest.raises(PackageError, match=r"differs by 0.001 from the golden answer for 00.jpg"):
        package_model(model, evaluation_step(store, model, tmp_path, shift=0.001), colour_plan(), store)


def test_no_reference_image_at_all_is_refused(store: Store, tmp_path: Path) -> None:
    model = model_step(store, tmp_path)
    with pytest.raises(PackageError, match="found 0 of 0"):
        package_model(model, evaluation_step(store, model, tmp_path, []), colour_plan(), store)
