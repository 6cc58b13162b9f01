"""Boxes that another tool found: a MegaDetector batch results file, matched to images by file name."""

from __future__ import annotations

import json
import logging
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import DetectionsError, redact_url
from animl_pipeline.steps.detections.detector import ANIMAL, PERSON, VEHICLE, Detection, tidy
from animl_pipeline.storage.remote_files import RemoteError, read_path_or_url

log = logging.getLogger(__name__)

KEY = "detections.results"
NAMES = {
    "animal": ANIMAL, "animals": ANIMAL, "person": PERSON, "people": PERSON, "human": PERSON, "vehicle": VEHICLE, "vehicles": VEHICLE,
}  # fmt: skip
NOT_IN_RESULTS = "not_in_results"
FAILED = "failed_in_results"
CONFIDENCE = 0.25
"""From which on boxes count where neither the plan nor the file says so."""
FAR = 2.0
"""A box that reaches so far is in pixels: relative ones end at 1, but for what rounding and clipping leave."""

Seen = list[Detection] | str


class Results(NamedTuple):
    """File name → what was found in it, or why nothing could be; and how many boxes had no area in the picture, or no numbers."""

    by_file: dict[str, Seen]
    unusable: int


def check_results(location: str, settings: Settings) -> None:
    """See that a results file is there; one at an address is not asked for.

    Raises:
        DetectionsError: there is no such file.
    """
    path = settings.data_path(location)
    if "://" not in location and not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where a name is too long
        raise DetectionsError(f"{KEY}: expected a MegaDetector results file at {path}, found no such file; mend it in the plan or set ANIML_DATA")


def read_results(location: str, settings: Settings) -> bytes:
    """The file's bytes.

    Raises:
        DetectionsError: it cannot be had.
    """
    try:
        return read_path_or_url(location, settings)
    except RemoteError as e:
        raise DetectionsError(f"{KEY}: expected a MegaDetector results file, {e}; mend it in the plan or set ANIML_DATA") from e


def results_by_file(data: bytes, location: str, confidence: float | None) -> Results:
    """What a results file says, of boxes of at least this confidence; None: the one that the file itself names as its detector's.

    Raises:
        DetectionsError: it is no such file.
    """
    try:
        content = _content(json.loads(data))
        categories = {str(key): NAMES.get(str(name).casefold(), "") for key, name in content["detection_categories"].items()}
        if categories and ANIMAL not in categories.values():
            raise ValueError(f"expected a detection category named animal, found {', '.join(map(str, content['detection_categories'].values()))}")
        floor = _advised(content) if confidence is None else confidence
        by_file: dict[str, Seen] = {}
        unusable = 0
        for image in content["images"]:
            file = _plain(str(image["file"]))
            seen, without_area = _seen(image, categories, floor)
            by_file[file] = _together(by_file.get(file, FAILED), seen)
            unusable += without_area
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        reason = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise DetectionsError(f"{KEY}: {redact_url(location)} is no MegaDetector results file ({reason}); mend {KEY} in the plan") from e
    if unusable:
        log.warning("detections: %d boxes of %s have no area in their picture, or no numbers, and are left out", unusable, redact_url(location))
    return Results(by_file, unusable)


def match_files(names: Iterable[tuple[str, str]], by_file: Mapping[str, Seen]) -> dict[tuple[str, str], Seen]:
    """(source, file name) → what the results say of it.

    A name is looked for as it stands, after the source's name, and then below any folder of the results, if only one file
    of theirs ends so.
    """
    endings: dict[str, list[str]] = {}
    for file in by_file:
        parts = file.split("/")
        for start in range(len(parts)):
            endings.setdefault("/".join(parts[start:]), []).append(file)
    seen: dict[tuple[str, str], Seen] = {}
    for source, name in names:
        plain = _plain(name)
        exact = [f for f in (f"{_plain(source)}/{plain}", plain) if f in by_file]
        files = exact[:1] or endings.get(plain, [])
        seen[source, name] = by_file[files[0]] if len(files) == 1 else NOT_IN_RESULTS
    return seen


def check_some(said: Mapping[tuple[str, str], Seen], by_file: Mapping[str, Seen]) -> None:
    """See that the results are of these pictures.

    Raises:
        DetectionsError: they say nothing of any.
    """
    if said and all(seen == NOT_IN_RESULTS for seen in said.values()):
        wanted, there = next(iter(said))[1], next(iter(by_file), "none")
        raise DetectionsError(
            f"{KEY}: expected results of the labels' pictures, such as {wanted}, found those of {len(by_file):,} others, such as {there}; "
            f"the names must be the same below some folder: mend {KEY} in the plan"
        )


def _content(content: Any) -> dict[str, Any]:
    """The file's content, its outermost parts as the format has them."""
    parts: Mapping[str, Any] = content if isinstance(content, dict) else {}
    for key, kind, what in (("detection_categories", dict, "an object"), ("images", list, "a list")):
        if not isinstance(parts.get(key), kind):
            raise ValueError(f"expected {key} as {what}")
    return dict(parts)


def _advised(content: Mapping[str, Any]) -> float:
    """The confidence that the file names as usual for its detector."""
    info = content.get("info")
    metadata = info.get("detector_metadata") if isinstance(info, dict) else None
    advised = metadata.get("typical_detection_threshold") if isinstance(metadata, dict) else None
    return float(advised) if isinstance(advised, int | float) and 0 < advised < 1 else CONFIDENCE


def _seen(image: Mapping[str, Any], categories: Mapping[str, str], floor: float) -> tuple[Seen, int]:
    """What was found in a picture, and how many of its boxes have no area in it, or no numbers."""
    detections = image.get("detections")
    if image.get("failure") or detections is None:
        return FAILED, 0
    found = []
    for detection in detections:
        if str(detection["category"]) not in categories:
            raise ValueError(f"{image['file']}: category {detection['category']!r} is not in detection_categories")
        confidence, box = float(detection["conf"]), [float(v) for v in detection["bbox"]]
        if len(box) != 4 or max(map(abs, box)) > FAR:
            raise ValueError(f"{image['file']}: expected boxes as [x, y, width, height], shares of the picture from 0 to 1, found {box}")
        if abs(confidence - 0.5) > 0.51:
            raise ValueError(f"{image['file']}: expected confidences from 0 to 1, found {confidence:g}")
        left, top, width, height = box
        found.append(Detection(categories[str(detection["category"])], confidence, top, left, top + height, left + width))
    with_area = [f for f in found if not math.isnan(f.confidence) and tidy([f])]
    return tidy(f for f in with_area if f.category and f.confidence >= floor), len(found) - len(with_area)


def _together(one: Seen, other: Seen) -> Seen:
    """What two entries of one picture say: a failure only where both do."""
    if isinstance(one, str) or isinstance(other, str):
        return other if isinstance(one, str) else one
    return tidy([*one, *other])


def _plain(name: str) -> str:
    """A file's name with slashes, its accents written in one way, whatever system wrote it."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")
