"""Outcomes of sequences, beside a restatement of the rules by which The Nature Conservancy scores its models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from animl_pipeline.inference.sequence_outcomes import ModelLabels, ReviewedImages, SequenceOutcomes, find_outcomes, number_sequences
from tests.support.sequence_score_rules import AnimlImage, AnimlObject, Label, sequences_of, tally

CLASSES = ("fox", "rat", "rodent")
EQUIVALENTS = {"rat": ("rodent",), "fox": ()}
"""A rat called rodent is right; a rodent called rat is not."""
NAN = math.nan


def outcomes_of(images: list[AnimlImage], gap_s: float = 3) -> SequenceOutcomes:
    """The product's outcomes for documents of Animl: an object with a label of a model is a box of the detector."""
    seconds = np.array([i.seconds for i in images], float)
    sequence = number_sequences(np.array([i.deployment for i in images], object), seconds, gap_s)
    truths: list[tuple[int, str]] = []
    boxes: list[tuple[int, list[bool]]] = []
    pairs: list[tuple[int, int]] = []
    for number, image in enumerate(images):
        for thing in (o for o in image.objects if o.locked):
            names = {label.name for label in thing.labels if label.by_model}
            if names:
                boxes.append((number, [c in names for c in CLASSES]))
            if (truth := thing.truth()) is not None:
                truths.append((number, truth))
                pairs += [(len(boxes) - 1, len(truths) - 1)] if names else []
    reviewed = ReviewedImages(sequence, np.array([t[0] for t in truths], np.int64), np.array([t[1] for t in truths], object))
    labelled = np.array([b[1] for b in boxes], bool).reshape(-1, len(CLASSES))
    of_box, of_truth = np.array(pairs, np.int64).reshape(-1, 2).T
    likeliest = labelled.argmax(axis=1).astype(np.int64)
    model = ModelLabels(np.array([b[0] for b in boxes], np.int64), labelled, likeliest, np.ones(len(boxes)), of_box, of_truth)
    return find_outcomes(reviewed, model, CLASSES, EQUIVALENTS)


def seen(truth: str, *called: str, locked: bool = True) -> AnimlObject:
    """An object that a model gave labels and a person corrected to ``truth``."""
    model = tuple(Label(name, by_model=True, validated=name == truth) for name in called)
    person = () if truth in called else (Label(truth, by_model=False, validated=True),)
    return AnimlObject(locked, (*model, *person))


def false_box(*called: str) -> AnimlObject:
    """An object whose labels a person refused."""
    return AnimlObject(locked=True, labels=tuple(Label(name, by_model=True, validated=False) for name in called))


label_names = st.sampled_from([*CLASSES, "rabbit", "empty animal"])
labels = st.builds(Label, label_names, st.booleans(), st.sampled_from([True, False, None]))
objects = st.builds(AnimlObject, st.booleans(), st.lists(labels, max_size=3).map(tuple))
times = st.sampled_from([0.0, 1.0, 3.0, 3.5, 6.0, 9.5, 86_399.0, 86_401.0, NAN])
"""Ties, gaps of exactly three seconds, midnight, unknown times."""
projects = st.lists(st.builds(AnimlImage, st.sampled_from(["north", "south"]), times, st.lists(objects, max_size=2).map(tuple)), max_size=8)


@given(projects)
def test_outcomes_equal_the_restated_rules(images: list[AnimlImage]) -> None:
    found = outcomes_of(images)
    for i, (target, equivalents) in enumerate([("fox", set()), ("rat", set()), ("rodent", {"rat"})]):
        expected = tally(images, target, equivalents)
        misses = (found.missed_by_detector | found.missed_by_threshold | found.missed_by_classifier)[:, i]
        assert (found.actual[:, i].sum(), found.hit[:, i].sum(), misses.sum(), found.false_alarm[:, i].sum()) == expected


@given(projects)
def test_each_actual_sequence_is_a_hit_or_has_one_cause_of_the_miss(images: list[AnimlImage]) -> None:
    found = outcomes_of(images)
    causes = np.stack([found.hit, found.missed_by_detector, found.missed_by_threshold, found.missed_by_classifier]).sum(axis=0)
    assert (causes == found.actual).all()
    assert not (found.false_alarm & found.actual).any()


@given(projects, st.floats(0, 10))
def test_images_are_in_one_sequence_as_the_restated_rules_say(images: list[AnimlImage], gap_s: float) -> None:
    numbers = number_sequences(np.array([i.deployment for i in images], object), np.array([i.seconds for i in images], float), gap_s)
    sizes = sorted(np.bincount(numbers)) if len(images) else []
    assert sizes == sorted(map(len, sequences_of(images, gap_s)))


@pytest.mark.parametrize(
    ("likeliest", "labelled", "matched", "cause"),
    [
        ("rat", ["rat"], True, "hit"),
        ("rat", [], True, "missed_by_threshold"),
        ("fox", ["fox"], True, "missed_by_classifier"),
        ("rat", ["rat"], False, "missed_by_detector"),
    ],
)
def test_a_miss_has_its_cause(likeliest: str, labelled: list[str], matched: bool, cause: str) -> None:
    reviewed = ReviewedImages(np.zeros(1, np.int64), np.zeros(1, np.int64), np.array(["rat"], object))
    pair = np.zeros(1 if matched else 0, np.int64)
    called = np.array([[c in labelled for c in CLASSES]])
    model = ModelLabels(np.zeros(1, np.int64), called, np.array([CLASSES.index(likeliest)]), np.ones(1), pair, pair)
    found = find_outcomes(reviewed, model, CLASSES, {})
    rat = CLASSES.index("rat")
    names = ("hit", "missed_by_detector", "missed_by_threshold", "missed_by_classifier")
    assert [name for name in names if getattr(found, name)[0, rat]] == [cause]


def test_a_false_box_in_a_sequence_with_the_animal_is_no_false_alarm() -> None:
    burst = [AnimlImage("north", 0, (seen("fox", "rat"),)), AnimlImage("north", 3, (false_box("fox"),))]
    found = outcomes_of(burst)
    assert found.false_alarm.tolist() == [[False, True, False]]
    assert not found.empty.any()


def test_a_sequence_without_any_validated_label_is_empty() -> None:
    found = outcomes_of([AnimlImage("north", 0, (false_box("rat"),)), AnimlImage("north", 100, (seen("rabbit"),))])
    assert found.empty.tolist() == [True, False]
    assert found.false_alarm[:, CLASSES.index("rat")].tolist() == [True, False]
