"""Above which probability of a class images may go without review, so that few of the skipped ones hold an invasive animal.

An image is *skipped* for a class if Animl shows this class, and nothing else, on each of its boxes, always with at least the asked probability.
The *risk* is the share of a location's skipped images in which people saw an invasive animal, as a mean over the locations that have skipped
images: each location counts the same. Images of one location are not independent, so the locations are the sample, and nothing is assumed
about how the shares are spread.

The bound of one threshold is the Hoeffding-Bentkus bound of a mean of independent values from 0 to 1 (Bates et al. 2021, Distribution-Free,
Risk-Controlling Prediction Sets). Thresholds are tested one after the other, from the strictest down, until the first one whose bound is above
the limit (fixed sequence testing, in Angelopoulos et al. 2021, Learn then Test). Therefore the same locations may choose a threshold and bound
its risk. Where the strictest thresholds skip images at too few locations for any answer, the sequence begins below them; this looks at where
images are skipped, never at what they hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.evaluation_results import AutoAccept, AutoAcceptClass, AutoAcceptPoint
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.inference.classifier import labelled_classes

if TYPE_CHECKING:
    from animl_pipeline.inference.sequence_outcomes import ModelLabels
    from animl_pipeline.steps.evaluation.production_score import SequenceData

CONFIDENCE = 0.95
THRESHOLDS = (0.999, 0.998, 0.995, 0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Tested in this order. Below 0.5, another class may be more probable."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class AnsweredImages(NamedTuple):
    """n reviewed images in which the model answered for at least one box.

    Attributes:
        location: int [n], number of the image's location, from 0.
        weight: float [n], how many images it stands for, where a location was sampled.
        invasive: bool [n], whether people saw an invasive animal anywhere in it.
        called: int [n], the class that is the only label of each box; -1 if there is none.
        probability: float [n], the lowest probability of that class over the boxes.
    """

    location: Ints
    weight: Floats
    invasive: Bools
    called: Ints
    probability: Floats


def images_of_sequences(data: SequenceData, labels: ModelLabels, invasive: Sequence[str]) -> AnsweredImages:
    """The searched images of the test locations, as in production: also empty ones, and those with animals that the detector missed.

    ``invasive``: classes; an animal that people called something that is no class of the plan is not invasive.
    """
    weight = data.sequences["weight"].to_numpy(np.float64)[data.reviewed.sequence]
    seen = np.zeros(len(data.images), bool)
    seen[data.reviewed.truth_image[np.isin(data.reviewed.truth.astype(str), list(invasive))]] = True
    location = pd.factorize(data.images["location"])[0].astype(np.int64)
    called, probability = _answers(labels.image, labels.labelled, labels.likeliest, labels.probability, len(data.images))
    boxed = np.unique(labels.image)
    return AnsweredImages(location[boxed], weight[boxed], seen[boxed], called[boxed], probability[boxed])


def images_of_crops(
    test: pd.DataFrame,
    ids: Sequence[str],
    thresholds: Mapping[str, float],
    invasive: Sequence[str],
    parents: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> AnsweredImages:
    """The images of the test crops: only animals of the plan's classes, with reviewed boxes or labels; no empty image and no missed animal.

    ``test``: the scored test crops. Crops without a location count as one location, because one camera may have taken them all.
    ``thresholds``: class → probability from which on Animl shows it; without any, the most probable class of a crop shows. ``parents``:
    parent → its children. A box that shows a parent does not show another class alone.
    """
    probability = test[[probability_column(c) for c in ids]].to_numpy(np.float64)
    likeliest = probability.argmax(axis=1)
    shown = labelled_classes(probability, ids, thresholds, parents) if thresholds else likeliest[:, None] == np.arange(len(ids))
    image = test.groupby(["source", "image_id"], sort=True).ngroup().to_numpy().astype(np.int64)
    n = int(image.max()) + 1 if len(image) else 0
    location, seen = np.zeros(n, np.int64), np.zeros(n, bool)
    location[image] = pd.factorize(test["location"])[0]
    seen[image[test["class_id"].isin(invasive).to_numpy()]] = True
    called, lowest = _answers(image, shown, likeliest.astype(np.int64), probability.max(axis=1), n)
    return AnsweredImages(location, np.ones(n), seen, called, lowest)


def find_thresholds(
    images: AnsweredImages,
    ids: Sequence[str],
    thresholds: Mapping[str, float],
    invasive: Sequence[str],
    max_per_1000: float,
    source: Literal["sequences", "crops"],
) -> AutoAccept:
    """For each class, the lowest probability from which on images may go without review, with its bound and the work it saves.

    ``ids``: the model's classes, in the order of ``images.called``. ``max_per_1000``: the most of 1,000 skipped images, at a mean location,
    that may hold an invasive animal.
    """
    limit = max_per_1000 / 1000
    needed = locations_needed(limit)
    classes = [
        AutoAcceptClass(id=c, answer="always_review")
        if c in invasive
        else _find_threshold(c, [_point(images, i, t, limit) for t in _tested(thresholds.get(c, 0.0))], needed)
        for i, c in enumerate(ids)
        if c in thresholds or not thresholds  # Animl never shows a class without a threshold
    ]
    return AutoAccept(
        max_invasive_per_1000=max_per_1000,
        confidence=CONFIDENCE,
        source=source,
        images=float(images.weight.sum()),
        images_with_invasive=float(images.weight[images.invasive].sum()),
        locations=len(np.unique(images.location)),
        locations_needed=needed,
        classes=tuple(classes),
    )


def locations_needed(limit: float) -> int:
    """How many locations with skipped images, and no invasive animal among them, show that the risk is at most ``limit``, from 0 to 1.

    With fewer, locations at which every skipped image holds an invasive animal may be that frequent and yet be in no sample.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-limit))


def lowest_limit(locations: int) -> float:
    """The lowest limit that so many locations can show to be kept, from 0 to 1, where none of their skipped images holds an invasive animal."""
    return float(1 - (1 - CONFIDENCE) ** (1 / locations))


def upper_bound(mean: float, n: int) -> float:
    """The Hoeffding-Bentkus upper bound, at ``CONFIDENCE``, of the mean of n independent values from 0 to 1, given their mean; 1 if n is 0."""
    from scipy.optimize import brentq

    wrong = 1 - CONFIDENCE
    if n == 0 or mean >= 1 or _probability_of_mean(mean, n, 1 - 1e-12) > wrong:
        return 1.0
    return float(brentq(lambda risk: _probability_of_mean(mean, n, risk) - wrong, mean, 1 - 1e-12, xtol=1e-9))


def _probability_of_mean(mean: float, n: int, risk: float) -> float:
    """At most how probable a mean as low as this is if the true mean is ``risk``, which is at least ``mean``."""
    from scipy.special import bdtr

    if risk <= mean:
        return 1.0
    divergence = (mean * math.log(mean / risk) if mean else 0.0) + (1 - mean) * math.log((1 - mean) / (1 - risk))
    bentkus = math.e * bdtr(math.ceil(n * mean - 1e-9), n, risk)
    return float(min(math.exp(-n * divergence), bentkus))


def _answers(box_image: Ints, shown: Bools, likeliest: Ints, probability: Floats, images: int) -> tuple[Ints, Floats]:
    """``called`` and ``probability`` of each image, from d boxes: their image, labels [d, classes], likeliest class and its probability."""
    alone = (shown.sum(axis=1) == 1) & shown[np.arange(len(likeliest)), likeliest]
    sole = np.where(alone, likeliest, -1)
    lowest, first, last = np.full(images, np.inf), np.full(images, shown.shape[1], np.int64), np.full(images, -1, np.int64)
    np.minimum.at(lowest, box_image, probability)
    np.minimum.at(first, box_image, sole)
    np.maximum.at(last, box_image, sole)
    return np.where(first == last, first, -1), lowest


def _tested(lowest: float) -> list[float]:
    """The thresholds of a class, strictest first, down to the one from which on Animl shows it."""
    return sorted({t for t in (*THRESHOLDS, lowest) if t >= max(lowest, THRESHOLDS[-1])}, reverse=True)


def _point(images: AnsweredImages, class_index: int, threshold: float, limit: float) -> AutoAcceptPoint:
    """Risk, bound and work saved of one threshold."""
    skipped = (images.called == class_index) & (images.probability >= threshold)
    location, weight, invasive = images.location[skipped], images.weight[skipped], images.invasive[skipped]
    of_location, wrong = np.bincount(location, weight), np.bincount(location, weight * invasive)
    shares = wrong[of_location > 0] / of_location[of_location > 0]
    observed = float(shares.mean()) if len(shares) else 0.0
    bound = upper_bound(observed, len(shares))
    over_images = float(wrong.sum() / max(weight.sum(), 1))
    return AutoAcceptPoint(
        threshold=threshold,
        locations=len(shares),
        skipped=float(weight.sum()),
        skipped_with_invasive=float(wrong.sum()),
        work_saved=float(weight.sum() / images.weight.sum()) if len(images.weight) else 0.0,
        observed_per_1000=1000 * observed,
        bound_per_1000=1000 * bound,
        holds=max(bound, over_images) <= limit,
    )


def _find_threshold(class_id: str, points: Sequence[AutoAcceptPoint], needed: int) -> AutoAcceptClass:
    """Test the thresholds in their order, and take the last one that holds before the first that does not."""
    shown = tuple(p for p in points if p.locations)
    if not shown:
        return AutoAcceptClass(id=class_id, answer="no_images")
    locations = max(p.locations for p in shown)
    found = AutoAcceptClass(
        id=class_id, answer="too_few_locations", locations=locations, lowest_limit_per_1000=1000 * lowest_limit(locations), points=shown
    )
    tested = [p for p in shown if p.locations >= needed]
    if not tested:
        return found
    failed = next((i for i, p in enumerate(tested) if not p.holds), len(tested))
    return found.model_copy(update={"answer": "skip" if failed else "too_risky", "point": tested[max(failed - 1, 0)]})
