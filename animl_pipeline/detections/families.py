"""Which detector a plan means, known by the sha256 of its weights before any of them is fetched or loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import NamedTuple

from animl_pipeline.detections import ultralytics_family, yolox_lite
from animl_pipeline.detections.detector import STRIDE, Detector
from animl_pipeline.errors import DetectionsError
from animl_pipeline.plan import DetectionsPlan
from animl_pipeline.settings import Settings
from animl_pipeline.store import sha256_of
from animl_pipeline.weights import fetch_weights, known_weights

KEY = "detections.detector"
LITE = "megadetector-lite"


class Choice(NamedTuple):
    """A detector that can be loaded. Name, weights and recipe say all that its answers depend on, besides the plan's numbers."""

    name: str
    sha256: str
    recipe: str
    load: Callable[[], Detector]


def choose_detector(spec: DetectionsPlan, settings: Settings) -> Choice:
    """The detector that the plan names.

    Raises:
        DetectionsError: the plan's numbers do not fit it, or the name is of other weights.
        WeightsError: there is no such file, or an address comes without a sha256.
    """
    if spec.image_size % STRIDE:
        raise DetectionsError(f"detections.image_size: expected a multiple of {STRIDE}, found {spec.image_size}")
    known = known_weights(spec.detector)
    if known is None:
        return _ultralytics(spec, settings)
    if known.name != LITE:
        raise DetectionsError(f"{KEY}: {known.name!r} are weights of a classifier; set it to {LITE} or to a checkpoint of a detector")
    return Choice(LITE, known.sha256, yolox_lite.RECIPE, lambda: _load_lite(spec, settings))


def _load_lite(spec: DetectionsPlan, settings: Settings) -> Detector:
    path = fetch_weights(spec.detector, settings, spec.sha256, key=KEY)
    return yolox_lite.YoloxLite.load(path, spec.image_size, spec.confidence)


def _ultralytics(spec: DetectionsPlan, settings: Settings) -> Choice:
    sha256 = spec.sha256 or sha256_of(fetch_weights(spec.detector, settings, key=KEY))
    name = PurePosixPath(spec.detector.partition("?")[0]).name  # without a signature or a machine's folders
    return Choice(name, sha256, ultralytics_family.RECIPE, lambda: _load_ultralytics(spec, settings))


def _load_ultralytics(spec: DetectionsPlan, settings: Settings) -> Detector:
    path = fetch_weights(spec.detector, settings, spec.sha256, key=KEY)
    return ultralytics_family.Ultralytics.load(path, spec.image_size, spec.confidence, verified=spec.sha256 is not None, settings=settings)
