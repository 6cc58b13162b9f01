"""Which label Animl shows for an animal, by the model's probabilities and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.inference.classifier import labelled_classes, parent_probabilities

Floats = NDArray[np.float64]


class ShownLabels(NamedTuple):
    """What Animl shows for each animal: class or parent "" where none reaches its threshold (unknown), its probability, and all that do."""

    label: NDArray[np.object_]
    probability: Floats
    all: list[list[str]]


def shown_labels(probability: Floats, card: ModelCard, kept_from: Mapping[str, float] | None = None) -> ShownLabels:
    """The labels of animals [n, classes of animals]. Without thresholds, the most probable class is the label.

    ``kept_from``: class or parent → the probability from which Animl keeps its label, where that is not the card's threshold.
    """
    ids = card.answered_ids()
    answers = np.concatenate([probability, parent_probabilities(probability, card.animal_ids(), card.thresholds, card.parents)], axis=1)
    if kept_from:
        limits = np.array([kept_from.get(c, np.inf) for c in ids])
        shown = answers >= np.maximum(limits, np.nextafter(0, 1))  # a parent that answers 0 is no label
    elif card.thresholds:
        shown = labelled_classes(probability, card.animal_ids(), card.thresholds, card.parents)
    else:
        shown = answers == answers.max(axis=1, keepdims=True, initial=0)
    best = np.where(shown, answers, -1.0).argmax(axis=1) if len(answers) else np.zeros(0, np.int64)
    any_shown = shown.any(axis=1)
    top = np.where(any_shown, answers[np.arange(len(answers)), best], probability.max(axis=1, initial=0))
    every = [[ids[i] for i in np.argsort(-row, kind="stable") if chosen[i]] for row, chosen in zip(answers, shown, strict=True)]
    return ShownLabels(np.where(any_shown, np.asarray(ids, object)[best], ""), top, every)
