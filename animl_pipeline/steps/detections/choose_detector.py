"""Choose the detector that the plan names: its family, weights, input size and confidence, before anything is downloaded or loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError
from animl_pipeline.core.step_declaration import installed_version
from animl_pipeline.core.write_megadetector_results import CATEGORIES, PERSON
from animl_pipeline.integrations.weights import KnownWeights, check_weights, fetch_weights, known_weights, list_known_weights
from animl_pipeline.steps.detections import sagemaker_detector, ultralytics_detector, yolov5, yolox_lite
from animl_pipeline.steps.detections.detector import STRIDE, Detector
from animl_pipeline.steps.detections.read_results_file import check_results_file
from animl_pipeline.storage.store import digest_of, sha256_of

PLAN_KEY = "detections.detector"
ENDPOINT_PREFIX = "sagemaker:"
ENDPOINT_NAME = r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}"
DEFAULT_IMAGE_SIZE, DEFAULT_CONFIDENCE = 640, 0.25
"""For a checkpoint that is not a known name."""
DETECTOR_SOURCES = frozenset({"detector", "auto"})
"""Values of ``detections.source`` for which a detector runs."""
FAMILIES: dict[str, ModuleType] = {"yolox-lite": yolox_lite, "ultralytics": ultralytics_detector, "yolov5": yolov5, "sagemaker": sagemaker_detector}
"""Family → the module with its VERSION and LIBRARIES."""


class ChosenDetector(NamedTuple):
    """A detector that is not yet loaded.

    Attributes:
        name: for messages and for the results file.
        family: a key of ``FAMILIES``.
        sha256: of the weights; of the name for an endpoint.
        image_size: longer side of the network's input in pixels; 0 for an endpoint.
        confidence: detections below it are dropped.
        load: downloads the weights if necessary and loads the detector.
        views: other views of each image in which it also looks.
    """

    name: str
    family: str
    sha256: str
    image_size: int
    confidence: float
    load: Callable[[], Detector]
    views: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Everything that the detections of an image depend on. It is part of the step's key.

        It does not hold the processor. A GPU computes in half precision, but its boxes are within a tenth of a pixel of a CPU's, and
        workers with and without a GPU must be able to share their results.
        """
        module = FAMILIES[self.family]
        return {
            "family": self.family,
            "version": module.VERSION,
            "libraries": {name: installed_version(name) for name in module.LIBRARIES},
            "sha256": self.sha256,
            "image_size": self.image_size,
            "confidence": self.confidence,
        } | ({"views": list(self.views)} if self.views else {})

    def index_name(self) -> str:
        """The name of the store's index with this detector's detections of each image."""
        return f"detections/{digest_of(self.identity())[:32]}"


def check_ready(config: DetectionsConfig, settings: Settings, *, for_production: bool = False) -> None:
    """Check that the plan names a detector or results file that can be used. Nothing is downloaded or loaded.

    ``for_production``: whether a detector is also needed where all training boxes are reviewed ones, to score production.

    Raises:
        DetectionsError, WeightsError: as :func:`choose_detector`; or the file does not exist; or images with people shall be dropped, but the
            detector cannot find people.
    """
    if config.results is not None:
        check_results_file(config.results, settings)
    if config.source not in DETECTOR_SOURCES and not (for_production and config.results is None):
        return
    if not config.detector.startswith(ENDPOINT_PREFIX):
        check_weights(config.detector, settings, config.sha256, key=PLAN_KEY)
    detector = choose_detector(config, settings)  # reads a file's sha256; after check_weights this is a local file
    if config.images_with_people == "drop" and detector.family == "yolox-lite":
        check_finds_people(yolox_lite.YoloxLite.categories, detector.name)


def check_finds_people(categories: Collection[str], name: str) -> None:
    """Check that a detector finds people.

    Raises:
        DetectionsError: it does not.
    """
    if PERSON not in categories:
        found = ", ".join(CATEGORIES[c] for c in sorted(categories))
        raise DetectionsError(
            f"detections.images_with_people: drop needs a detector that finds people, but {name} only finds: {found}; set detections.detector",
            code="finds_no_people",
        )


def choose_detector(config: DetectionsConfig, settings: Settings) -> ChosenDetector:
    """The detector that the plan names.

    Raises:
        DetectionsError: a number of the plan does not fit the detector, or the name is of weights that are not a detector's.
        WeightsError: the file does not exist, or a URL has no sha256 in the plan.
    """
    if config.detector.startswith(ENDPOINT_PREFIX):
        return _choose_endpoint(config, settings)
    known = known_weights(config.detector)
    if known is not None and known.for_ != "detections":
        names = ", ".join(w.name for w in list_known_weights() if w.for_ == "detections")
        raise DetectionsError(
            f"{PLAN_KEY}: {known.name!r} are weights of a classifier; set it to one of {names}, or to a detector's checkpoint", code="not_a_detector"
        )
    image_size, confidence = _numbers(config, known)
    family = (known and known.family) or ("ultralytics" if config.family == "auto" else config.family)
    sha256 = config.sha256 or (known and known.sha256) or sha256_of(fetch_weights(config.detector, settings, key=PLAN_KEY))
    # Without the query of a signed URL, and without folders of this machine
    name = known.name if known else PurePosixPath(config.detector.partition("?")[0]).name
    if family == "ultralytics" and not (known or name.endswith(".pt")):
        raise DetectionsError(f"{PLAN_KEY}: expected a .pt checkpoint or a name such as megadetector-lite, found {name}", code="not_a_checkpoint")
    if family == "yolov5" and config.sha256 is None:
        raise DetectionsError(
            f"{name} is a pickle that runs code when it is loaded; if you trust it, set detections.sha256 to {sha256}", code="sha256_required"
        )
    load = partial(_load_weights, family, config, sha256, image_size, confidence, settings)
    if config.views and family != "yolox-lite":
        raise DetectionsError(f"detections.views: expected megadetector-lite as the detector, found {name}; leave views out", code="no_views")
    return ChosenDetector(name, family, sha256, image_size, confidence, load, config.views)


def _numbers(config: DetectionsConfig, known: KnownWeights | None) -> tuple[int, float]:
    """Image size and confidence: the plan's, else those of the known weights, else the defaults."""
    image_size = config.image_size or (known and known.image_size) or DEFAULT_IMAGE_SIZE
    if image_size % STRIDE:
        raise DetectionsError(f"detections.image_size: expected a multiple of {STRIDE}, found {image_size}", code="wrong_image_size")
    return image_size, config.confidence or (known and known.confidence) or DEFAULT_CONFIDENCE


def _load_weights(family: str, config: DetectionsConfig, sha256: str, image_size: int, confidence: float, settings: Settings) -> Detector:
    path = fetch_weights(config.detector, settings, config.sha256, key=PLAN_KEY)
    if family == "yolox-lite":
        return yolox_lite.YoloxLite.load(path, sha256, image_size, confidence, settings, config.views)
    if family == "yolov5":
        return yolov5.YoloV5.load(path, image_size, confidence)
    verified = config.sha256 is not None
    return ultralytics_detector.load_ultralytics(path, sha256, image_size, confidence, verified=verified, settings=settings)


def _choose_endpoint(config: DetectionsConfig, settings: Settings) -> ChosenDetector:
    name = config.detector.removeprefix(ENDPOINT_PREFIX)
    if not re.fullmatch(ENDPOINT_NAME, name):
        raise DetectionsError(
            f"{PLAN_KEY}: expected the name of an endpoint, such as sagemaker:megadetector-realtime, found {config.detector!r}",
            code="wrong_endpoint_name",
        )
    confidence = config.confidence or DEFAULT_CONFIDENCE
    load = partial(sagemaker_detector.SagemakerDetector, name, confidence, settings)
    return ChosenDetector(name, "sagemaker", digest_of(name), 0, confidence, load)
