"""What a model's labels in Animl mean for each sequence of images: animal found, animal missed and why, false alarm.

The rules are those by which The Nature Conservancy scores its models in service (animl-api, ``analyzeMLSequenceLevel``): images of one
deployment that are at most three seconds apart are a sequence. For a class, a sequence is *actual* if people saw the class, or one that
counts as it, in any image; a *hit* if the model labelled such an animal with the class; a *miss* if it is actual and no hit; a *false
alarm* if it is not actual and the model labelled anything with the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class ReviewedImages(NamedTuple):
    """What people saw in n images.

    Attributes:
        sequence: int [n], number of the image's sequence, from 0.
        truth_image: int [t], the image of each object that people labelled.
        truth: text [t], its class; its label where the model has no such class.
    """

    sequence: Ints
    truth_image: Ints
    truth: NDArray[np.object_]


class ModelLabels(NamedTuple):
    """What detector and classifier made of the same images: d detected boxes.

    Attributes:
        image: int [d], the image of each box.
        labelled: bool [d, classes], whether the class's probability reaches its threshold, so that Animl shows the label. Where the model
            has parent classes, they are the last columns.
        likeliest: int [d], the most probable class; -1 if the model takes the box for a false one.
        probability: float [d], its probability.
        truth_box: int [p], the box of each pair of a box and an object that people labelled there.
        truth: int [p], the pair's object: a position in ``ReviewedImages.truth``.
    """

    image: Ints
    labelled: Bools
    likeliest: Ints
    probability: Floats
    truth_box: Ints
    truth: Ints


class SequenceOutcomes(NamedTuple):
    """For each sequence and class, bool [sequences, classes]; ``empty``: bool [sequences], whether people saw nothing at all.

    Where the model has parent classes, they are the last columns. ``noticed``: the animal got the label of the class or of its parent.

    A miss has one cause: ``missed_by_detector`` (no box on the animal), ``missed_by_threshold`` (the class was the most probable one of
    a box on the animal, but below its threshold) or ``missed_by_classifier`` (another class was more probable on every box).
    """

    actual: Bools
    hit: Bools
    missed_by_detector: Bools
    missed_by_threshold: Bools
    missed_by_classifier: Bools
    false_alarm: Bools
    empty: Bools
    noticed: Bools


def number_sequences(deployment: NDArray[np.object_], seconds: Floats, gap_s: float) -> Ints:
    """The number of each image's sequence, from 0.

    Args:
        deployment: [n], the camera deployment of each image.
        seconds: [n], when it was taken, in seconds; NaN where unknown. Such an image is a sequence of its own.
        gap_s: consecutive images of a deployment that are at most this far apart are in one sequence.
    """
    codes = np.unique(deployment.astype(str), return_inverse=True)[1]
    order = np.lexsort((np.nan_to_num(seconds, nan=np.inf), codes))
    gap = np.diff(seconds[order], prepend=np.nan)
    starts = np.diff(codes[order], prepend=-1) != 0
    starts |= ~(gap <= gap_s)  # a comparison with an unknown time is False, too
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(starts) - 1
    return numbers


def counts_as(classes: Sequence[str], equivalents: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    """Class → the true classes for which it is right: itself, and each class whose equivalents include it."""
    return {c: frozenset({c} | {truth for truth, accepted in equivalents.items() if c in accepted}) for c in classes}


def find_outcomes(
    images: ReviewedImages,
    model: ModelLabels,
    classes: Sequence[str],
    equivalents: Mapping[str, Sequence[str]],
    parents: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> SequenceOutcomes:
    """What happened in each sequence, by class, then by parent.

    A parent is right for each animal that one of its children is right for, and for animals that people called by its own name. The label of
    a child counts as a label of its parent, too.

    ``equivalents``: class → other classes that count as right when they are predicted for it. ``parents``: parent → its children, where the
    model has parent classes.
    """
    sequences = int(images.sequence.max()) + 1 if len(images.sequence) else 0
    right = right_truths(images.truth, classes, equivalents, parents)
    truth_sequence, box_sequence = images.sequence[images.truth_image], images.sequence[model.image]
    actual = _any_of_sequence(truth_sequence, right, sequences)

    pair_sequence, pair_right = box_sequence[model.truth_box], right[model.truth]
    labels_of_box = _with_parents(model.labelled, classes, parents)
    pair_likeliest = _with_parents(model.likeliest[model.truth_box, None] == np.arange(len(classes)), classes, parents)
    detected = _any_of_sequence(pair_sequence, pair_right, sequences)
    hit = _any_of_sequence(pair_sequence, pair_right & labels_of_box[model.truth_box], sequences)
    likeliest = _any_of_sequence(pair_sequence, pair_right & pair_likeliest, sequences)
    labelled = _any_of_sequence(box_sequence, labels_of_box, sequences)
    own_or_parent = _with_own_parent(labels_of_box, model.labelled, classes, parents)
    noticed = _any_of_sequence(pair_sequence, pair_right & own_or_parent[model.truth_box], sequences) if parents else hit
    return SequenceOutcomes(
        actual=actual,
        hit=hit,
        missed_by_detector=actual & ~detected,
        missed_by_threshold=detected & ~hit & likeliest,
        missed_by_classifier=detected & ~hit & ~likeliest,
        false_alarm=labelled & ~actual,
        empty=np.bincount(truth_sequence, minlength=sequences) == 0,
        noticed=noticed,
    )


def _with_parents(values: Bools, classes: Sequence[str], parents: Mapping[str, Sequence[str]]) -> Bools:
    """Bool [n, classes + parents]: a parent's column is true where one of its children's is, and where it was, if ``values`` has it."""
    found = np.zeros((len(values), len(classes) + len(parents)), bool)
    found[:, : values.shape[1]] = values
    for column, children in enumerate(parents.values(), start=len(classes)):
        found[:, column] |= values[:, [list(classes).index(c) for c in children]].any(axis=1)
    return found


def _with_own_parent(values: Bools, labelled: Bools, classes: Sequence[str], parents: Mapping[str, Sequence[str]]) -> Bools:
    """``values`` where a child's column is also true where the model labelled the box with its parent."""
    found = values.copy()
    for column, children in enumerate(parents.values(), start=len(classes)):
        found[:, [list(classes).index(c) for c in children]] |= labelled[:, [column]]
    return found


def right_truths(
    truth: NDArray[np.object_], classes: Sequence[str], equivalents: Mapping[str, Sequence[str]], parents: Mapping[str, Sequence[str]]
) -> Bools:
    """Whether each class and parent is right for each object: bool [objects, classes + parents]."""
    accepted = counts_as(classes, equivalents)
    accepted |= {parent: frozenset({parent}).union(*(accepted[c] for c in children)) for parent, children in parents.items()}
    names, codes = np.unique(truth.astype(str), return_inverse=True)
    table = np.array([[name in right for right in accepted.values()] for name in names], bool).reshape(len(names), len(accepted))
    return np.asarray(table[codes])


def _any_of_sequence(sequence: Ints, values: Bools, sequences: int) -> Bools:
    """Whether any row of each sequence is true, by column: bool [sequences, columns] of bool [rows, columns]."""
    found = np.zeros((sequences, values.shape[1]), bool)
    row, column = np.nonzero(values)
    found[sequence[row], column] = True
    return found
