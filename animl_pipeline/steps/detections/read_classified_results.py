"""Read the boxes and classes that another model gave the test images, from a MegaDetector batch results file with classifications."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import DetectionsError, redact_url
from animl_pipeline.core.table_schemas import TEST_IMAGES
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.box_overlap import match_animals
from animl_pipeline.steps.detections.boxes_of_test_images import as_labelled_images, read_downloaded_test_images, reviewed_boxes_of_test_images
from animl_pipeline.steps.detections.match_results_by_path import UNMATCHED, match_results
from animl_pipeline.steps.detections.read_results_file import FAILED_IN_RESULTS, parse_results
from animl_pipeline.storage.store import Store

ClassNames = tuple[str, ...]
"""What a file calls a class: its name, and its taxonomy in the form of SpeciesNet where the file has one."""
Answer = tuple[tuple[ClassNames, float], ...]
"""The classes of a box, each with its confidence."""


class ClassifiedResults(NamedTuple):
    """What another model found in the test images.

    Attributes:
        images: the test images that the file answers: source, image_id.
        boxes: one row for each animal box in them: source, image_id, annotation_id ("" where the box is on no reviewed box), answer.
        dropped: why other test images have no answer → how many.
        not_in_test_set: files of the results that are no test image.
    """

    images: pd.DataFrame
    boxes: pd.DataFrame
    dropped: dict[str, int]
    not_in_test_set: int


class TestSet(NamedTuple):
    """The steps test_images and, for each source, test_downloads."""

    images: Artifact
    downloads: Mapping[str, Artifact]


def read_classified_results(
    data: bytes, name: str, confidence: float, test: TestSet, config: DetectionsConfig, image_folders: Mapping[str, str], store: Store
) -> ClassifiedResults:
    """The boxes and classes of a results file in the test images.

    ``confidence``: lowest confidence of a box, as in production.

    Raises:
        DetectionsError: it is no such file ("wrong_format"), it has no classes ("no_classes"), or none of the test images ("other_images").
    """
    name = redact_url(name)
    found: list[dict[str, Any]] = []
    try:
        results = parse_results(data, name, confidence, found)
        answers = _read_answers(found, json.loads(data))
    except DetectionsError as e:
        hint = "; the predictions of SpeciesNet must be converted first (speciesnet_to_md)" if b'"predictions"' in data[:4096] else ""
        reason = e.details.get("reason", str(e))
        raise DetectionsError(f"{name} is not a MegaDetector results file ({reason}){hint}", code="wrong_format") from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise DetectionsError(f"{name}: expected classifications as [category, confidence], found others ({e})", code="wrong_format") from e
    if not any(answers):
        raise DetectionsError(f"{name}: expected boxes with classifications, found none; it holds the boxes of a detector only", code="no_classes")
    images = as_labelled_images(_at_test_locations(read_downloaded_test_images(test.images, test.downloads, store), test.images, store))
    try:
        matched, _ = match_results(images, results, config, image_folders)
    except DetectionsError as e:
        raise DetectionsError(
            f"{name}: expected answers for the test images, such as {e.details.get('wanted')}, found none, but files such as "
            f"{e.details.get('found')}; run the model on the same images, or set detections.results_folders",
            code="other_images",
        ) from e
    reviewed = reviewed_boxes_of_test_images(test.images, store)
    rows = []
    for key, detections in matched.items():
        if isinstance(detections, str):
            continue
        animals = [d._replace(category=ANIMAL) for d in detections]
        on_reviewed = match_animals(reviewed.get(key, {}), animals)
        rows += [(*key, on_reviewed.get(i, ""), answers[int(d.category)]) for i, d in enumerate(detections)]
    answered = [key for key, detections in matched.items() if not isinstance(detections, str)]
    reasons = Counter(d for d in matched.values() if isinstance(d, str))
    in_file = len(answered) + sum(n for reason, n in reasons.items() if reason not in UNMATCHED)
    return ClassifiedResults(
        pd.DataFrame(answered, columns=["source", "image_id"]),
        pd.DataFrame(rows, columns=["source", "image_id", "annotation_id", "answer"]),
        {("failed_in_results" if reason == FAILED_IN_RESULTS else reason): n for reason, n in reasons.items()},
        max(len(results.by_file) - in_file, 0),
    )


def _at_test_locations(images: pd.DataFrame, test_images: Artifact, store: Store) -> pd.DataFrame:
    """The images without the later ones of known cameras, which may be like those that the plan's model learnt from."""
    tested = store.table(test_images, TEST_IMAGES, ["source", "image_id", "later"])
    return images.merge(tested.loc[~tested["later"], ["source", "image_id"]], on=["source", "image_id"])


def _read_answers(animals: list[dict[str, Any]], content: Mapping[str, Any]) -> list[Answer]:
    """The classes of each box, with their names.

    Raises:
        ValueError: a class is not in the file's list, or a confidence is not from 0 to 1.
    """
    names = {str(key): str(value) for key, value in (content.get("classification_categories") or {}).items()}
    taxa = {str(key): str(value) for key, value in (content.get("classification_category_descriptions") or {}).items()}
    return [tuple(_read_class(category, conf, names, taxa) for category, conf in a.get("classifications") or ()) for a in animals]


def _read_class(category: object, confidence: object, names: Mapping[str, str], taxa: Mapping[str, str]) -> tuple[ClassNames, float]:
    key, value = str(category), float(str(confidence))
    if key not in names:
        raise ValueError(f"category {key!r} is not in classification_categories")
    if not 0 <= value <= 1.01:
        raise ValueError(f"confidence {value:g}")
    return tuple(dict.fromkeys(filter(None, (names[key], taxa.get(key, ""))))), value
