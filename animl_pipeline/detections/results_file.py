"""Boxes that another tool found: a MegaDetector batch results file, matched to images by file name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from animl_pipeline.detections.detector import ANIMAL, PERSON, VEHICLE, Found, tidy
from animl_pipeline.errors import DetectionsError
from animl_pipeline.remote import RemoteError, bare_address, read_address
from animl_pipeline.settings import Settings

KEY = "detections.results"
NAMES = {"animal": ANIMAL, "person": PERSON, "human": PERSON, "vehicle": VEHICLE}
NOT_IN_RESULTS = "not_in_results"
FAILED = "failed_in_results"

Seen = list[Found] | str


def read_results(place: str, settings: Settings) -> bytes:
    """The file's bytes.

    Raises:
        DetectionsError: it cannot be had.
    """
    try:
        return read_address(place, settings)
    except RemoteError as e:
        raise DetectionsError(f"{KEY}: expected a MegaDetector results file, {e}; mend it in the plan or set ANIML_DATA") from e


def results_by_file(data: bytes, place: str, confidence: float) -> dict[str, Seen]:
    """File name → what was found in it, of at least this confidence, or why nothing could be.

    Raises:
        DetectionsError: it is no such file.
    """
    try:
        content = json.loads(data)
        categories = {key: NAMES.get(str(name).casefold(), "") for key, name in content["detection_categories"].items()}
        return {str(image["file"]).replace("\\", "/"): _seen(image, categories, confidence) for image in content["images"]}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        reason = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise DetectionsError(f"{KEY}: {bare_address(place)} is no MegaDetector results file ({reason}); mend {KEY} in the plan") from e


def _seen(image: Mapping[str, Any], categories: Mapping[str, str], confidence: float) -> Seen:
    if image.get("failure"):
        return FAILED
    found = []
    for detection in image.get("detections") or []:
        left, top, width, height = (float(v) for v in detection["bbox"])
        category = categories[detection["category"]]
        if category and float(detection["conf"]) >= confidence:
            found.append(Found(category, float(detection["conf"]), top, left, top + height, left + width))
    return tidy(found)


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
        exact = [f for f in (f"{source}/{name}", name) if f in by_file] or endings.get(name, [])
        seen[source, name] = by_file[exact[0]] if len(exact) == 1 or (exact and exact[0] in {f"{source}/{name}", name}) else NOT_IN_RESULTS
    return seen
