"""Which detector a plan means, known by the sha256 of its weights before any of them is fetched or loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.integrations.weights import KnownWeights, check_weights, fetch_weights, known_weights, registry
from animl_pipeline.steps.detections import sagemaker_detector, ultralytics_detector, yolov5, yolox_lite
from animl_pipeline.steps.detections.detector import CATEGORIES, PERSON, STRIDE, Detector
from animl_pipeline.steps.detections.read_results_file import check_results
from animl_pipeline.storage.step_cache import digest_of, sha256_of

KEY = "detections.detector"
ENDPOINT = "sagemaker:"
IMAGE_SIZE, CONFIDENCE = 640, 0.25
"""For checkpoints of which nothing is known."""

RECIPES = {"yolox-lite": yolox_lite.RECIPE, "ultralytics": ultralytics_detector.RECIPE, "yolov5": yolov5.RECIPE}


class Choice(NamedTuple):
    """A detector that can be loaded. All but its name and how it is loaded say what its answers depend on."""

    name: str
    sha256: str
    recipe: str
    image_size: int
    confidence: float
    load: Callable[[], Detector]


LOOKING = frozenset({"detector", "auto"})
"""Sources of boxes for which a detector looks at pictures."""


def check_ready(spec: DetectionsConfig, settings: Settings) -> None:
    """See that the plan names a detector that can be asked for, or a results file. Nothing is fetched, and nothing is loaded.

    Raises:
        As :func:`choose_detector`.
        DetectionsError: also where the detector is known to find no persons, whose pictures the plan leaves out.
    """
    if spec.results is not None:
        check_results(spec.results, settings)
    if spec.source not in LOOKING:
        return
    if not spec.detector.startswith(ENDPOINT):
        check_weights(spec.detector, settings, spec.sha256, key=KEY)
    choice = choose_detector(spec, settings)  # by now what has no sha256 is a file that is here
    if spec.images_with_people == "drop" and choice.recipe == yolox_lite.RECIPE:
        check_finds_people(yolox_lite.YoloxLite.categories, choice.name)


def check_finds_people(categories: Collection[str], name: str) -> None:
    """See that a detector finds persons.

    Raises:
        DetectionsError: it does not.
    """
    if PERSON not in categories:
        found = ", ".join(CATEGORIES[c] for c in sorted(categories))
        raise DetectionsError(f"detections.people: drop needs a detector that finds persons, {name} finds {found} only; set detections.detector")


def choose_detector(spec: DetectionsConfig, settings: Settings) -> Choice:
    """The detector that the plan names.

    Raises:
        DetectionsError: the plan's numbers do not fit it, or the name is of other weights.
        WeightsError: there is no such file, or nobody says its sha256.
    """
    if spec.detector.startswith(ENDPOINT):
        return _endpoint(spec, settings)
    known = known_weights(spec.detector)
    if known is not None and known.for_ != "detections":
        names = ", ".join(w.name for w in registry() if w.for_ == "detections")
        raise DetectionsError(f"{KEY}: {known.name!r} are weights of a classifier; set it to one of {names}, or to a checkpoint of a detector")
    size, confidence = _numbers(spec, known)
    family = (known and known.family) or ("ultralytics" if spec.family == "auto" else spec.family)
    sha256 = spec.sha256 or (known and known.sha256) or sha256_of(fetch_weights(spec.detector, settings, key=KEY))
    name = known.name if known else PurePosixPath(spec.detector.partition("?")[0]).name  # without a signature or a machine's folders
    if known is None and family == "ultralytics":
        ultralytics_detector.check_name(name)
    if family == "yolov5" and spec.sha256 is None:
        raise DetectionsError(f"{name} is a pickle that runs what is in it when it is loaded; if you trust it, set detections.sha256 to {sha256}")
    return Choice(name, sha256, RECIPES[family], size, confidence, partial(_load, family, spec, sha256, size, confidence, settings))


def _numbers(spec: DetectionsConfig, known: KnownWeights | None) -> tuple[int, float]:
    """Image size and confidence: the plan's, else those that the detector was made for."""
    size = spec.image_size or (known and known.image_size) or IMAGE_SIZE
    if size % STRIDE:
        raise DetectionsError(f"detections.image_size: expected a multiple of {STRIDE}, found {size}")
    return size, spec.confidence or (known and known.confidence) or CONFIDENCE


def _load(family: str, spec: DetectionsConfig, sha256: str, size: int, confidence: float, settings: Settings) -> Detector:
    path = fetch_weights(spec.detector, settings, spec.sha256, key=KEY)
    if family == "yolox-lite":
        return yolox_lite.YoloxLite.load(path, sha256, size, confidence, settings)
    if family == "yolov5":
        return yolov5.YoloV5.load(path, size, confidence)
    verified = spec.sha256 is not None
    return ultralytics_detector.load_ultralytics(path, sha256, size, confidence, verified=verified, settings=settings)


def _endpoint(spec: DetectionsConfig, settings: Settings) -> Choice:
    name = spec.detector.removeprefix(ENDPOINT)
    if not re.fullmatch(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}", name):
        raise DetectionsError(f"{KEY}: expected an endpoint's name, such as sagemaker:megadetector-realtime, found {spec.detector!r}")
    confidence = spec.confidence or CONFIDENCE
    load = partial(sagemaker_detector.AskedEndpoint, name, confidence, settings)
    return Choice(name, digest_of(name), sagemaker_detector.RECIPE, 0, confidence, load)
