"""Errors of a plan: all at once, in the plan's words, with the nearest valid value."""

from __future__ import annotations

from typing import Any

import pytest

from animl_pipeline.config import check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PlanError, WeightsError
from animl_pipeline.integrations.weights import check_weights
from tests.config.test_plan import plan_data

PYDANTIC_WORDS = ("ClassConfig", "instance", "dictionary", "None", "literal[", "tuple", "Input should", "Value error", "parse")


def refused(**changes: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        check_plan(plan_data(**changes))
    return caught.value


def test_errors_of_sections_and_between_sections_are_said_together() -> None:
    error = refused(
        train={"epochs": 0, "lrr": 0.1, "augment": ["flip", "rotate"]},
        release={"memory_mb": 1000},
        thresholds={"invasive": ["foxx", "brid"]},
        gate={"first_model": "other"},
    )
    assert error.details["keys"] == ["train.lrr", "train.epochs", "train.augment.1", "release.memory_mb", ""]
    for word in ("'lr'", "'rotate'", "1024", "'fox'", "'bird'", "gate.first_model"):
        assert word in str(error), word


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"train": {"augment": ["flip", "rotat", "blurr"]}}, "train.augment.1", ("'rotat'", "'blur'")),
        ({"train": {"augment": "camera-trap"}}, "train.augment", ("'camera_trap'",)),
        ({"labels": {"classes": {"fox": None, "bird": ["bird"]}}}, "labels.classes.fox", ("list of labels", "nothing")),
        ({"labels": {"classes": {"fox": 3, "bird": ["bird"]}}}, "labels.classes.fox", ("list of labels",)),
        ({"labels": None}, "labels", ("classes", "nothing")),
        ({"thresholds": {"aims": {"invasive": 0.9}}}, "thresholds.aims.invasive", ("recall", "precision")),
        ({"splits": {"val": "a lot"}}, "splits.val", ("a number",)),
        ({"detections": {"source": "anotations"}}, "detections.source", ("'annotations'",)),
        ({"release": {"memory_mb": 4000}}, "release.memory_mb", ("the nearest is 4096",)),
        ({"model": "My Model"}, "model", ("small letters",)),
        ({"train": {"augmentt": "none"}}, "train.augmentt", ("'augment'",)),
    ],
)
def test_an_error_is_in_plain_words_and_names_the_nearest_valid_value(changes: dict[str, Any], key: str, words: tuple[str, ...]) -> None:
    error = refused(**changes)
    assert error.details["keys"][0] == key
    assert [word for word in words if word not in str(error)] == []
    assert [word for word in PYDANTIC_WORDS if word in str(error)] == []


def test_a_wrong_value_makes_no_error_elsewhere() -> None:
    error = refused(labels={"classes": {"fox": None, "bird": ["bird"]}}, thresholds={"invasive": ["fox"]}, train={"weights": ""})
    assert error.details["keys"] == ["labels.classes.fox", "train.weights"]
    error = refused(sources=[{"name": "A B", "export": "e.json"}], splits={"train_only": ["a/cove"]})
    assert error.details["keys"] == ["sources.0.name", "sources.0.images"]


def test_every_label_with_two_meanings_is_named() -> None:
    error = refused(labels={"classes": {"fox": ["fox", "dog", "cat"], "bird": ["dog", "cat"]}})
    assert "'dog'" in str(error)
    assert "'cat'" in str(error)


@pytest.mark.parametrize(
    ("key", "name", "offered", "never"),
    [
        ("detections.detector", "megadetector-lit", "megadetector-lite", "efficientnet"),
        ("detections.detector", "efficientnet-lite0", "megadetector-lite", "efficientnet-lite0-imagenet"),
        ("train.weights", "efficientnet-lite0", "efficientnet-lite0-imagenet", "megadetector-v"),
    ],
)
def test_only_weights_for_the_same_use_are_offered(settings: Settings, key: str, name: str, offered: str, never: str) -> None:
    with pytest.raises(WeightsError) as caught:
        check_weights(name, settings, key=key)
    suggestion = str(caught.value).split("URL, or ")[1]
    assert offered in suggestion
    assert never not in suggestion
