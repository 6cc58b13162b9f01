"""Animals unlike all that a model learnt from: the reference that calibration keeps, and the suspected strangers in the test images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PackageError
from animl_pipeline.inference.classifier import Classifier, read_card
from animl_pipeline.inference.embedding_reference import REFERENCE_FILE, EmbeddingReference, distances_at_other_locations, fit_reference
from animl_pipeline.steps.calibration import calibrate_classifier
from animl_pipeline.steps.evaluation.find_strangers import NO_ANIMAL, find_strangers, stranger_values
from animl_pipeline.steps.evaluation.production_score import read_sequences, score_and_embed_boxes
from animl_pipeline.storage.store import Store
from tests.conftest import colour_model
from tests.review.conftest import GREEN, RED, STRANGE, colour_reference
from tests.steps.test_production_score import Scene, run_steps
from tests.support.colour_models import fit_linear, island_crops, island_plan, make_data_steps, make_linear_model


def test_animals_outside_the_plan_and_false_boxes_are_suspected_and_named_as_people_do(tmp_path: Path, store: Store, settings: Settings) -> None:
    scenes = (
        Scene("cove", 0, "red", True, RED, True),
        Scene("cove", 100, "hare", True, STRANGE, True),
        Scene("cove", 102, "hare", True, STRANGE, True),  # the same sequence
        Scene("hill", 0, "empty", False, STRANGE, True),
        Scene("hill", 100, "green", True, GREEN, True),
    )
    steps = run_steps(tmp_path, store, settings, scenes)
    data = read_sequences(steps.images, steps.detections, store)
    classifier = Classifier.load(colour_model(tmp_path / "model", ("red", "green", "blue")))
    probability, embeddings = score_and_embed_boxes(data, classifier, store, classifier.card.model_input, "boxes")
    found = find_strangers(data, probability, embeddings, colour_reference(), classifier.card, "")
    assert sorted(zip(found["people_say"], found["in_plan"], strict=True)) == [("hare", False), (NO_ANIMAL, True)]
    shown = stranger_values(found, len(data.boxes), store)["strangers"]
    assert {n["name"]: n["count"] for n in shown["names"]} == {"hare": 1, NO_ANIMAL: 1}
    assert [c["image"][:23] for c in shown["crops"]] == ["data:image/jpeg;base64,"] * 2


def test_calibration_keeps_the_animals_that_were_learnt_from(store: Store, tmp_path: Path) -> None:
    plan, crops = island_plan(), island_crops(noise=20.0)
    steps = make_data_steps(store, crops, plan, tuple(plan.labels.classes))
    calibrated = calibrate_classifier(make_linear_model(store, fit_linear(crops)), steps.crops, steps.splits, plan.thresholds, store)
    card = read_card(store.path(calibrated, "card.json"))
    shutil.copy(store.path(calibrated, REFERENCE_FILE), tmp_path)
    reference = EmbeddingReference.load(tmp_path, card)
    assert reference is not None
    assert np.isfinite(reference.limit)
    assert set(reference.class_number) == set(range(len(plan.labels.classes)))
    (tmp_path / REFERENCE_FILE).write_bytes(b"another file")
    with pytest.raises(PackageError) as caught:
        EmbeddingReference.load(tmp_path, card)
    assert caught.value.code == "wrong_reference"


def test_a_new_colour_is_further_from_all_classes_and_the_same_animals_give_the_same_bytes(tmp_path: Path) -> None:
    reference = colour_reference()
    whites = np.array([[0.95, 0.95, 0.95], [-0.9, -0.9, -0.9]])
    assert (reference.stranger_scores(whites, np.full((2, 3), 1 / 3)) > reference.limit).all()
    first, second = (colour_reference().save(tmp_path) for _ in range(2))
    assert first == second
    animals = np.random.default_rng(0).normal(size=(60, 200))  # more numbers than animals
    location, numbers = np.array([f"place {i % 10}" for i in range(60)], object), np.arange(60) % 3
    new = fit_reference(animals[:30], numbers[:30])
    usual = distances_at_other_locations(animals, numbers, location)
    assert 0.5 < np.median(usual) / np.median(new.distances(new.components(animals[30:]))) < 2
