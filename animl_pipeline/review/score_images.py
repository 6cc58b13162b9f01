"""Detector and classifier on images, as production runs them: boxes with probabilities, labels as Animl shows them, and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import DetectionsConfig, Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import BlobReader
from animl_pipeline.core.capture_times import parse_seconds
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImageError
from animl_pipeline.core.image_orientation import read_orientation
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.inference.score_crops import score_and_embed_crops
from animl_pipeline.inference.sequence_outcomes import number_sequences
from animl_pipeline.steps.detections.choose_detector import choose_detector
from animl_pipeline.steps.detections.detector import Detection
from animl_pipeline.steps.detections.labelled_images import LabelledImage
from animl_pipeline.steps.detections.match_results_by_path import match_results
from animl_pipeline.steps.detections.read_results_file import parse_results, read_results_file
from animl_pipeline.steps.detections.run_detector import run_detector
from animl_pipeline.storage.store import Store

Floats = NDArray[np.float64]
UNREADABLE = "image access failure"
"""MegaDetector's words for an image that cannot be read."""
BOX = ["ymin", "xmin", "ymax", "xmax"]


class ScoredImages(NamedTuple):
    """Images with the detector's boxes and the model's answers.

    Attributes:
        images: the images, with their ``sequence`` as a number.
        failed: row of an image → why there is no result.
        boxes: the boxes of all categories: ``row`` (of the image), ``category``, ``confidence``, ``BOX``, and for animals ``animal``, their row
            in the arrays below, else -1.
        probability: float64 [animals, outputs of the model].
        embeddings: float32 [animals, width]; without columns where the package gives none.
        card: the model's card.
    """

    images: pd.DataFrame
    failed: dict[int, str]
    boxes: pd.DataFrame
    probability: Floats
    embeddings: NDArray[np.float32]
    card: ModelCard

    def animals(self) -> pd.DataFrame:
        """The boxes of animals, in the order of the arrays."""
        return self.boxes[self.boxes["animal"] >= 0].reset_index(drop=True)

    def animal_probability(self) -> Floats:
        """The probabilities without the class for false boxes: [animals, classes of animals]."""
        return self.probability[:, : len(self.card.animal_ids())]


def score_images(
    images: pd.DataFrame, reader: BlobReader, plan: Plan, classifier: Classifier, store: Store, settings: Settings, results: Path | None = None
) -> ScoredImages:
    """Detect and classify.

    Args:
        images: rows with ``IMAGE_COLUMNS``.
        reader: holds the images.
        plan: its detector, with production's confidence, and production's gap between sequences.
        classifier: the model.
        store: remembers the detections of each image.
        settings: weights, and how many images are decoded at a time.
        results: a MegaDetector results file with the boxes; None: the plan's detector finds them.

    Raises:
        DetectionsError, WeightsError: the detector cannot run, or the results file does not fit.
    """
    images = images.reset_index(drop=True)
    config, gap_s = plan.detections, 3.0
    if plan.production is not None:
        config, gap_s = config.model_copy(update={"confidence": plan.production.detector_confidence}), plan.production.sequence_gap_seconds
    images = images.assign(sequence=_sequences(images, gap_s))
    found = _read_results(images, reader, results, config, settings) if results else _detect(images, reader, config, store, settings)
    failed = {row: answer for row, answer in found.items() if isinstance(answer, str)}
    boxes = pd.DataFrame(
        [(row, *d) for row, answer in found.items() if not isinstance(answer, str) for d in answer], columns=["row", "category", "confidence", *BOX]
    ).astype({"row": np.int64, "category": object})
    animal = (boxes["category"] == ANIMAL).to_numpy(bool)
    boxes["animal"] = np.where(animal, np.cumsum(animal) - 1, -1)
    crops = boxes.loc[animal, BOX].assign(blob="", image=images["blob"].to_numpy(object)[boxes.loc[animal, "row"]])
    scored = score_and_embed_crops(crops, classifier, reader, classifier.card.model_input, "boxes")
    probability = scored.rows[[probability_column(c) for c in classifier.card.class_ids()]].to_numpy(float)
    return ScoredImages(images, failed, boxes, probability, scored.embeddings, classifier.card)


def smooth_over_sequences(probability: Floats, sequence: NDArray[np.int64]) -> Floats:
    """The same answer for all boxes of a sequence: the softmax of the mean of their logits, float64 [n, outputs].

    The mean of log probabilities differs from that of logits by a constant for each row, which softmax ignores.
    """
    logs = np.log(np.maximum(probability, 1e-12))
    number = np.unique(sequence, return_inverse=True)[1]
    sums = np.zeros((number.max(initial=-1) + 1, probability.shape[1]))
    np.add.at(sums, number, logs)
    means = sums / np.bincount(number, minlength=len(sums))[:, None]
    spread = np.exp(means - means.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray((spread / spread.sum(axis=1, keepdims=True))[number])


def _sequences(images: pd.DataFrame, gap_s: float) -> NDArray[np.int64]:
    """The number of each image's sequence: the export's, else images of a location within the gap. An image without a time is one of its own."""
    place = images["source"] + "\n" + images["location"]
    by_time = number_sequences(place.to_numpy(object), parse_seconds(images["taken"]), gap_s)
    named = images["sequence"].astype(str)
    keys = np.where(named != "", images["source"] + "\n" + named, by_time.astype(str))
    return np.asarray(pd.factorize(keys)[0], np.int64)


def _detect(
    images: pd.DataFrame, reader: BlobReader, config: DetectionsConfig, store: Store, settings: Settings
) -> dict[int, list[Detection] | str]:  # fmt: skip
    blobs = images["blob"].tolist()
    found = run_detector(sorted(set(blobs) - {""}), choose_detector(config, settings), config, store, settings, reader)
    return {row: UNREADABLE if blob == "" or isinstance(found[blob], str) else found[blob] for row, blob in enumerate(blobs)}


def _read_results(
    images: pd.DataFrame, reader: BlobReader, results: Path, config: DetectionsConfig, settings: Settings
) -> dict[int, list[Detection] | str]:  # fmt: skip
    """The boxes of a results file, turned to the images as stored. An image that the file lacks or that does not decode has a reason instead."""
    parsed = parse_results(read_results_file(str(results.resolve()), settings), str(results), config.confidence)
    keys = list(zip(images["source"], images["image_id"], strict=True))
    listed: Mapping[tuple[str, str], LabelledImage] = {
        key: LabelledImage(blob, path, "", "", 0, 0, read_orientation(reader.blob(blob)) if blob else 1, {})
        for key, blob, path in zip(keys, images["blob"], images["path"], strict=True)
    }
    matched, _ = match_results(listed, parsed, config, {})
    return {row: matched[key] if _decodes(reader, listed[key].blob, matched[key]) else UNREADABLE for row, key in enumerate(keys)}


def _decodes(reader: BlobReader, blob: str, found: list[Detection] | str) -> bool:
    """Whether an image can be read and, if boxes were found in it, decodes."""
    if blob == "" or not found or isinstance(found, str):
        return blob != ""
    try:
        open_image(reader.blob(blob))
    except ImageError:
        return False
    return True
