"""Read boxes that another tool found, from a MegaDetector batch results file.

The format is https://lila.science/megadetector-output-format.
"""

from __future__ import annotations

import json
import logging
import math
import os
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.category_names import normalise_name, role
from animl_pipeline.core.errors import DetectionsError, DetectorUnreachableError, redact_url
from animl_pipeline.core.write_megadetector_results import ANIMAL, AS_STORED, CATEGORIES, IMAGE_ORIENTATION, PERSON, VEHICLE
from animl_pipeline.steps.detections.detector import Detection, clean_detections
from animl_pipeline.storage.read_remote_files import RemoteError, read_path_or_url

log = logging.getLogger(__name__)

PLAN_KEY = "detections.results"
FAILED_IN_RESULTS = "failed_in_results"
DEFAULT_CONFIDENCE = 0.25
"""Lowest confidence of a box if neither the plan nor the file names one."""
MAX_COORDINATE = 2.0
"""Relative coordinates end at 1, plus rounding and clipping. A larger number is in pixels."""

FileResult = list[Detection] | str
"""The detections of a file, or the reason why there are none."""


class Results(NamedTuple):
    """The content of a results file.

    Attributes:
        by_file: file name → its detections.
        sizes: file name → width and height in pixels of the image as the detector saw it, where the file says so.
        turned: whether the tool turns images by their EXIF orientation, as MegaDetector does.
        unusable: the number of boxes without an area inside the image or with values that are not numbers.
    """

    by_file: dict[str, FileResult]
    sizes: dict[str, tuple[int, int]]
    turned: bool
    unusable: int


def check_results_file(path_or_url: str, settings: Settings) -> None:
    """Check that a results file exists. A URL is not checked.

    Raises:
        DetectionsError: the file does not exist.
    """
    path = settings.data_path(path_or_url)
    if "://" not in path_or_url and not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a name that is too long
        raise DetectionsError(
            f"{PLAN_KEY}: expected a MegaDetector results file at {path}, found no such file; correct the plan or set ANIML_DATA", code="file_missing"
        )


def read_results_file(path_or_url: str, settings: Settings) -> bytes:
    """The bytes of a results file.

    Raises:
        DetectorUnreachableError: its host does not answer now.
        DetectionsError: it cannot be read.
    """
    try:
        return read_path_or_url(path_or_url, settings)
    except RemoteError as e:
        error = DetectorUnreachableError if e.retryable else DetectionsError
        raise error(f"{PLAN_KEY}: expected a MegaDetector results file, {e}; correct the plan or set ANIML_DATA", code="file_missing") from e


def parse_results(data: bytes, path_or_url: str, confidence: float | None, animals: list[Any] | None = None) -> Results:
    """Parse a results file and drop boxes below ``confidence`` (None: the threshold that the file names for its detector, else 0.25).

    If a list ``animals`` is given, the file's own record of each animal is added to it, and the category of the animal's detection is the
    position in the list, as text; people and vehicles are left out. So a caller gets at the classes of a box.

    Raises:
        DetectionsError: it is not such a file.
    """
    name = redact_url(path_or_url)
    try:
        content = _check_content(json.loads(data))
        categories = {str(key): _category(str(label)) for key, label in content["detection_categories"].items()}
        if categories and ANIMAL not in categories.values():
            raise ValueError(f"expected a detection category named animal, found {', '.join(map(str, content['detection_categories'].values()))}")
        threshold = _typical_threshold(content) if confidence is None else confidence
        by_file: dict[str, FileResult] = {}
        sizes: dict[str, tuple[int, int]] = {}
        unusable = 0
        for image in content["images"]:
            file = normal_path(str(image["file"]))
            result, unusable_here = _parse_image(image, categories, threshold, animals)
            by_file[file] = _merge(by_file.get(file, FAILED_IN_RESULTS), result)
            unusable += unusable_here
            if size := _size(image):
                sizes[file] = size
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        reason = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise DetectionsError(
            f"{PLAN_KEY}: {name} is not a MegaDetector results file ({reason}); correct {PLAN_KEY} in the plan", code="wrong_format", reason=reason
        ) from e
    if unusable:
        log.warning("detections: %d boxes of %s are left out, because they have no area inside the image or are not numbers", unusable, name)
    return Results(by_file, sizes, _info(content).get(IMAGE_ORIENTATION) != AS_STORED, unusable)


def _check_content(content: Any) -> dict[str, Any]:
    """The file's content, if its two main parts have the right type."""
    parts: dict[str, Any] = content if isinstance(content, dict) else {}
    for key, kind, description in (("detection_categories", dict, "an object"), ("images", list, "a list")):
        if not isinstance(parts.get(key), kind):
            raise ValueError(f"expected {key} as {description}")
    return parts


def _info(content: Mapping[str, Any]) -> dict[str, Any]:
    info = content.get("info")
    return info if isinstance(info, dict) else {}


def _category(label: str) -> str:
    """MegaDetector's category for a name that a tool gives to one; "" for none of its three."""
    if normalise_name(label) == CATEGORIES[ANIMAL]:
        return ANIMAL
    return {"people": PERSON, "vehicle": VEHICLE}.get(role(label), "")


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of an image, if the record has both."""
    width, height = image.get("width"), image.get("height")
    return (width, height) if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0 else None


def _typical_threshold(content: Mapping[str, Any]) -> float:
    """The confidence threshold that the file names as typical for its detector."""
    metadata = _info(content).get("detector_metadata")
    typical = metadata.get("typical_detection_threshold") if isinstance(metadata, dict) else None
    return float(typical) if isinstance(typical, int | float) and 0 < typical < 1 else DEFAULT_CONFIDENCE


def _parse_image(image: Mapping[str, Any], categories: Mapping[str, str], threshold: float, animals: list[Any] | None) -> tuple[FileResult, int]:
    """The detections of an image, and how many of its boxes are unusable."""
    if image.get("failure") or image.get("detections") is None:
        return FAILED_IN_RESULTS, 0
    detections = []
    for detection in image["detections"]:
        if str(detection["category"]) not in categories:
            raise ValueError(f"{image['file']}: category {detection['category']!r} is not in detection_categories")
        confidence, box = float(detection["conf"]), [float(v) for v in detection["bbox"]]
        if len(box) != 4 or max(map(abs, box)) > MAX_COORDINATE:
            raise ValueError(f"{image['file']}: expected boxes as [x, y, width, height], relative from 0 to 1, found {box}")
        if abs(confidence - 0.5) > 0.51:
            raise ValueError(f"{image['file']}: expected confidences from 0 to 1, found {confidence:g}")
        left, top, width, height = box
        category = categories[str(detection["category"])]
        if animals is not None:
            category = str(len(animals)) if category == ANIMAL else ""
            animals += [detection] if category else []
        detections.append(Detection(category, confidence, top, left, top + height, left + width))
    usable = [d for d in detections if not math.isnan(d.confidence) and clean_detections([d])]
    return clean_detections(d for d in usable if d.category and d.confidence >= threshold), len(detections) - len(usable)


def _merge(one: FileResult, other: FileResult) -> FileResult:
    """The result of two entries for one file. It is a failure only if both are."""
    if isinstance(one, str) or isinstance(other, str):
        return other if isinstance(one, str) else one
    return clean_detections([*one, *other])


def normal_path(path: str) -> str:
    """A path with slashes and composed accents, whatever operating system wrote it."""
    return unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./")
