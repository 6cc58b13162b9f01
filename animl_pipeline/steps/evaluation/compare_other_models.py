"""Score the answers of other models by the score of production, beside the project's own model on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.evaluation_results import ProductionScore
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.inference.sequence_outcomes import ModelLabels
from animl_pipeline.steps.evaluation.production_score import (
    SequenceData,
    find_outcomes_of,
    match_boxes,
    read_sequences,
    score_classifier,
    score_production,
)
from animl_pipeline.storage.store import Store

if TYPE_CHECKING:
    from animl_pipeline.inference.classifier import Classifier


class OtherAnswers(NamedTuple):
    """What another model answers, in the plan's classes.

    Attributes:
        name: how the model is called in the comparison.
        images: the test images that it answers: source, image_id.
        boxes: one row for each of its boxes: source, image_id, annotation_id ("" where the box is on no reviewed box).
        confidence: float [boxes, classes], of each class; 0 where the model does not name it.
        likeliest: int [boxes], the most confident class; -1 if that is none of the plan's.
    """

    name: str
    images: pd.DataFrame
    boxes: pd.DataFrame
    confidence: NDArray[np.float64]
    likeliest: NDArray[np.int64]


class TestSteps(NamedTuple):
    """The steps test_images and test_detections."""

    images: Artifact
    detections: Artifact


def score_beside_others(
    steps: TestSteps,
    classifier: Classifier,
    others: Sequence[OtherAnswers],
    threshold: float,
    equivalents: Mapping[str, Sequence[str]],
    detector_confidence: float,
    store: Store,
    stored: ModelInput,
) -> list[ProductionScore]:
    """The score of the project's model, then of each other one, on the images of the test locations that all of them answer.

    ``threshold``: lowest confidence at which a class of another model counts as a label. ``equivalents``: class → other classes that count as
    right for it.

    Raises:
        EvaluationError: no image is answered by all models (code "no_common_image").
    """
    common = others[0].images
    for other in others[1:]:
        common = common.merge(other.images, on=["source", "image_id"])
    data = read_sequences(*steps, store, only=common)
    if not len(data.images):
        raise EvaluationError("no test image is answered by all models; compare fewer files at a time", code="no_common_image")
    ids = classifier.card.animal_ids()
    own_score = score_classifier(data, classifier, equivalents, detector_confidence, store, stored, "boxes of test images")
    labels = [_label(data, other, threshold, steps.images, store) for other in others]
    return [own_score, *(score_production(data, find_outcomes_of(data, one, ids, equivalents), ids, detector_confidence) for one in labels)]


def _label(data: SequenceData, other: OtherAnswers, threshold: float, test_images: Artifact, store: Store) -> ModelLabels:
    """The labels of another model's boxes in the images of ``data``."""
    boxes, truth_box, truth = match_boxes(data, other.boxes.assign(row=range(len(other.boxes))), test_images, store)
    rows = boxes["row"].to_numpy(np.int64)
    confidence = other.confidence[rows]
    strongest = confidence.max(axis=1) if len(rows) else np.zeros(0)
    return ModelLabels(boxes["image"].to_numpy(np.int64), confidence >= threshold, other.likeliest[rows], strongest, truth_box, truth)
