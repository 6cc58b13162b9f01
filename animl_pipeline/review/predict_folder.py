"""Predict what the images of a folder show, as Animl would show it."""

from __future__ import annotations

from pathlib import Path

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.inference.shown_labels import shown_labels
from animl_pipeline.review.folder_images import read_folder
from animl_pipeline.review.packaged_model import load_packaged_model
from animl_pipeline.review.score_images import score_images, smooth_over_sequences
from animl_pipeline.review.write_predictions import Predictions
from animl_pipeline.storage.store import Store


def predict_folder(
    folder: Path, plan: Plan, store: Store, settings: Settings, *, version: str = "", results: Path | None = None, smooth: bool = False
) -> Predictions:
    """The labels of all animals in the images below a folder.

    Args:
        folder: is only read.
        plan: its package answers, and its detector finds the boxes.
        store: holds the package, and remembers the detections of each image.
        settings: weights, and how many images are decoded at a time.
        version: the version that answers; empty: the latest that is no trial.
        results: a MegaDetector results file with the boxes, instead of the detector.
        smooth: give all animals of a sequence the answer of the mean of their logits.

    Raises:
        EvaluationError: there is no such package.
        ImagesError: there is no image.
        DetectionsError, WeightsError: the detector cannot run, or the results file does not fit.
    """
    classifier = load_packaged_model(plan, version, store).classifier
    images, reader = read_folder(folder, store, settings)
    scored = score_images(images, reader, plan, classifier, store, settings, results)
    if smooth:
        sequence = scored.images["sequence"].to_numpy()[scored.animals()["row"]]
        scored = scored._replace(probability=smooth_over_sequences(scored.probability, sequence))
    detector = results.name if results else plan.detections.detector
    return Predictions(scored, shown_labels(scored.animal_probability(), scored.card), detector, smooth)
