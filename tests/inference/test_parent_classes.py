"""Parent classes in answers and in the outcomes of sequences, beside a restatement of the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from animl_pipeline.core.errors import PackageError
from animl_pipeline.inference.classifier import Classifier, labelled_classes
from animl_pipeline.inference.sequence_outcomes import ModelLabels, ReviewedImages, SequenceOutcomes, find_outcomes
from animl_pipeline.serve.model_worker import best_last
from tests.conftest import colour_model
from tests.support.packaged_model import with_card
from tests.support.sequence_score_rules import AnimlImage, AnimlObject, Label, sequences_of, tally

THRESHOLDS = {"red": 0.7, "green": 0.7, "blue": 0.7, "warm": 0.6}
WARM = {"warm": ("red", "green")}


def warm_classifier(folder: Path) -> Classifier:
    return Classifier.load(with_card(colour_model(folder), thresholds=THRESHOLDS, parents=WARM))


def test_a_parent_answers_the_sum_where_no_child_reaches_its_threshold_and_else_0(tmp_path: Path) -> None:
    classifier = warm_classifier(tmp_path)
    yellow, red, blue = (classifier.classify_crop(Image.new("RGB", (32, 32), c)) for c in ((200, 200, 20), (230, 20, 20), (20, 20, 230)))
    assert tuple(yellow) == classifier.card.answered_ids() == ("red", "green", "blue", "warm")
    assert max(yellow["red"], yellow["green"]) < 0.7 < yellow["warm"] == pytest.approx(yellow["red"] + yellow["green"])
    assert (list(best_last(yellow))[-1], list(best_last(red))[-1]) == ("warm", "red")
    assert red["red"] >= 0.7
    assert red["warm"] == 0
    assert blue["warm"] == pytest.approx(blue["red"] + blue["green"])


@pytest.mark.parametrize(
    "card",
    [
        {"parents": {"warm": ["red", "violet"]}, "thresholds": THRESHOLDS},
        {"parents": {"blue": ["red", "green"]}, "thresholds": THRESHOLDS},
        {"parents": {"warm": ["red", "green"], "dark": ["green", "blue"]}, "thresholds": THRESHOLDS | {"dark": 0.5}},
        {"parents": WARM, "thresholds": {"red": 0.7, "green": 0.7}},
        {"parents": WARM, "thresholds": {"red": 0.7, "warm": 0.7}},
    ],
)
def test_a_card_whose_parents_do_not_fit_its_classes_is_refused(tmp_path: Path, card: dict[str, Any]) -> None:
    folder = with_card(colour_model(tmp_path), **card)
    with pytest.raises(PackageError) as refused:
        Classifier.load(folder)
    assert refused.value.code == "wrong_card"


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.7, 0.9])] * 3), min_size=1, max_size=5), st.sampled_from([0.0, 0.6]))
def test_a_box_has_no_label_of_a_parent_beside_one_of_its_child(rows: list[tuple[float, float, float]], threshold: float) -> None:
    shown = labelled_classes(np.array(rows), ("red", "green", "blue"), THRESHOLDS | {"warm": threshold}, WARM)
    for (red, green, blue), labels in zip(rows, shown.tolist(), strict=True):
        child = red >= 0.7 or green >= 0.7
        assert labels == [red >= 0.7, green >= 0.7, blue >= 0.7, not child and red + green >= threshold and red + green > 0]


# -- sequences -----------------------------------------------------------------------------------------------------------------

CLASSES = ("rat", "mouse", "fox")
RODENT = {"rodent": ("rat", "mouse")}
EQUIVALENTS = {"vole": ("mouse",), "rat": ("fox",)}
ANSWERS = st.sampled_from([(), ("rat",), ("mouse",), ("fox",), ("rodent",), ("rodent", "fox"), ("rat", "mouse")])
TRUTHS = st.sampled_from([None, "rat", "mouse", "fox", "vole", "rodent", "hare"])


@st.composite
def answered_objects(draw: st.DrawFn) -> AnimlObject:
    """An object that a model may have labelled, and that people may have named."""
    truth = draw(TRUTHS)
    model = tuple(Label(name, by_model=True, validated=False) for name in draw(ANSWERS))
    return AnimlObject(locked=True, labels=(*model, *([Label(truth, by_model=False, validated=True)] if truth else [])))


images_of_objects = st.lists(
    st.builds(
        AnimlImage, st.sampled_from(["north", "south"]), st.sampled_from([0.0, 2.0, 50.0]), st.lists(answered_objects(), max_size=2).map(tuple)
    ),
    max_size=6,
)


def called(thing: AnimlObject) -> set[str]:
    return {label.name for label in thing.labels if label.by_model}


def outcomes_of(images: list[AnimlImage]) -> SequenceOutcomes:
    numbered = [(number, image) for number, sequence in enumerate(sequences_of(images, 3)) for image in sequence]
    truths = [(i, t) for i, (_, image) in enumerate(numbered) for o in image.objects if (t := o.truth()) is not None]
    boxes, pairs, seen = [], [], 0
    for i, (_, image) in enumerate(numbered):
        for thing in image.objects:
            boxes.append((i, [name in called(thing) for name in (*CLASSES, *RODENT)]))
            if thing.truth() is not None:
                pairs.append((len(boxes) - 1, seen))
                seen += 1
    reviewed = ReviewedImages(
        np.array([n for n, _ in numbered], np.int64), np.array([i for i, _ in truths], np.int64), np.array([t for _, t in truths], object)
    )
    labelled = np.array([shown for _, shown in boxes], bool).reshape(-1, 4)
    of_box, of_truth = np.array(pairs, np.int64).reshape(-1, 2).T
    likeliest = np.zeros(len(boxes), np.int64)
    model = ModelLabels(np.array([i for i, _ in boxes], np.int64), labelled, likeliest, np.ones(len(boxes)), of_box, of_truth)
    return find_outcomes(reviewed, model, CLASSES, EQUIVALENTS, RODENT)


def with_parent_labels(image: AnimlImage) -> AnimlImage:
    """The same image as if the model had also said the parent of each class that it said."""
    parent = Label("rodent", by_model=True, validated=False)
    things = [AnimlObject(o.locked, (*o.labels, parent)) if called(o) & {"rat", "mouse"} else o for o in image.objects]
    return AnimlImage(image.deployment, image.seconds, tuple(things))


@given(images_of_objects)
def test_outcomes_of_children_and_parents_equal_the_restated_rules(images: list[AnimlImage]) -> None:
    found = outcomes_of(images)
    widened = [with_parent_labels(image) for image in images]
    right = {"rat": {"rat"}, "mouse": {"mouse", "vole"}, "fox": {"fox", "rat"}, "rodent": {"rat", "mouse", "vole", "rodent"}}
    for i, target in enumerate((*CLASSES, *RODENT)):
        misses = (found.missed_by_detector | found.missed_by_threshold | found.missed_by_classifier)[:, i]
        counts = (found.actual[:, i].sum(), found.hit[:, i].sum(), misses.sum(), found.false_alarm[:, i].sum())
        assert counts == tally(widened if target == "rodent" else images, target, right[target] - {target})
        names = {target, "rodent"} if target in RODENT["rodent"] else {target}
        noticed = [
            any(o.truth() in right[target] and called(o) & names for image in sequence for o in image.objects)
            for sequence in sequences_of(widened if target == "rodent" else images, 3)
        ]
        assert found.noticed[:, i].tolist() == noticed
