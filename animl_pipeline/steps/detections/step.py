"""The step detections: the boxes of all labelled images as one table, reviewed by people or found by a detector."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.megadetector_format import ResultBoxes, write_results
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import (
    DETECTION_FAILURES,
    DETECTIONS,
    DISAGREEMENTS,
    DROPPED_ANNOTATIONS,
    IMAGES_WITH_PEOPLE,
    LABELS,
    REPEAT_DETECTIONS,
)
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.detections.choose_detector import DETECTOR_SOURCES, ChosenDetector, choose_detector
from animl_pipeline.steps.detections.detector import ANIMAL, PERSON, Detection
from animl_pipeline.steps.detections.read_results_file import Results, check_any_match, match_files, parse_results, read_results_file
from animl_pipeline.steps.detections.repeat_detections import LocatedBox, find_repeat_detections
from animl_pipeline.steps.detections.reviewed_boxes import (
    ImageKey,
    LabelledImage,
    find_disagreements,
    images_labelled_person,
    match_animals,
    read_labelled_images,
)
from animl_pipeline.steps.detections.run_detector import IMAGE_BROKEN, run_detector
from animl_pipeline.storage.image_index import in_batch
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

STEP = Step(
    "detections",
    version=1,
    sections=("detections",),
    reads=(LABELS, DROPPED_ANNOTATIONS),
    writes=(DETECTIONS, REPEAT_DETECTIONS, DETECTION_FAILURES, DISAGREEMENTS, IMAGES_WITH_PEOPLE),
    libraries=("pillow", "onnxruntime", "torch", "ultralytics"),
)
RESULTS_FILE = "megadetector.json"
NO_BOX = "no_box"
PERSON_IN_IMAGE = "person_in_image"
FAILURE_TEXTS = {IMAGE_BROKEN: "image access failure"}
"""The words of MegaDetector's format for a failure, where it has its own."""

Detected = dict[ImageKey, list[Detection] | str]
"""The detections of each image that a detector or a results file was asked for, or the reason why there are none."""


class ImageBoxes(NamedTuple):
    """The boxes of one image that the pipeline uses.

    Attributes:
        origin: ``annotation`` or ``detector``.
        boxes: the boxes, or the reason why there are none.
        annotation_ids: for each box the reviewed annotation that it belongs to; empty for none.
    """

    origin: str
    boxes: list[Detection] | str
    annotation_ids: list[str]


def detect_animals(labels: Artifact, config: DetectionsConfig, store: Store, settings: Settings) -> Artifact:
    """Collect the boxes of all labelled images: detections.parquet and, in MegaDetector's format, megadetector.json.

    Further tables: detector_failures.parquet (images without boxes), repeat_detections.parquet (detector boxes that are not used, because
    they repeat at a location), disagreements.parquet (between people and the detector, for images that both have looked at) and
    images_with_people.parquet.

    Args:
        labels: the step that gave each annotation its class.
        config: whose boxes are used, and which detector finds the missing ones.
        store: holds the images, and an index with the detections of each image.
        settings: the cache of weights, and how many images are decoded at a time.

    Raises:
        WeightsError: the detector's weights cannot be loaded.
        DetectionsError: the detector does not fit the plan, it fails, or the results file cannot be read.
        DetectorUnreachableError: the detector's endpoint does not answer now.
    """
    detector = choose_detector(config, settings) if config.source in DETECTOR_SOURCES else None
    results_file = read_results_file(config.results, settings) if config.results else None
    key: dict[str, Any] = config.model_dump(include={"source", "images_with_people", "repeat_min_occasions", "repeat_iou"})
    digests = {}
    if detector is not None:
        key["detector"] = detector.identity()
    if results_file is not None:
        key["confidence"] = config.confidence
        digests["results"] = hashlib.sha256(results_file).hexdigest()

    def build(space: Workspace) -> StepOutput:
        images = read_labelled_images(labels, store)
        detected: Detected = {}
        notes: dict[str, int] = {}
        if results_file is not None:
            results = parse_results(results_file, str(config.results), config.confidence)
            detected, notes = _match_results(images, results), {"unusable_boxes": results.unusable}
        elif detector is not None:
            blobs = _images_to_detect(images, config)
            found = run_detector(sorted(set(blobs.values())), detector, config, store, settings)
            detected = {image: found[blob] for image, blob in blobs.items()}
        people = (images_labelled_person(labels, store) & images.keys()) | {image for image, boxes in detected.items() if _has(boxes, PERSON)}
        return _write(space.out, images, detected, people, detector, config, notes)

    return store.make(STEP, inputs={"labels": labels}, digests=digests, config=key, build=build)


def run_detector_share(labels: Artifact, config: DetectionsConfig, share: int, of: int, store: Store, settings: Settings) -> int:
    """Run the detector over share number ``share`` (from 0) of the images before the step does, and return their number.

    The step then finds the detections in the store's index. Shares are made from the images' sha256, so that workers with the same store,
    on one machine or several, detect each image once. Raises as :func:`detect_animals`.
    """
    if config.source not in DETECTOR_SOURCES:
        return 0
    blobs = set(_images_to_detect(read_labelled_images(labels, store), config).values())
    mine = [blob for blob in sorted(blobs) if in_batch(blob, share, of)]
    run_detector(mine, choose_detector(config, settings), config, store, settings)
    return len(mine)


def _images_to_detect(images: Mapping[ImageKey, LabelledImage], config: DetectionsConfig) -> dict[ImageKey, str]:
    """Image → blob of the images for which the detector must run: those without reviewed boxes, and all if it must find people."""
    all_images = config.source == "detector" or config.images_with_people == "drop"
    return {key: image.blob for key, image in images.items() if all_images or not image.reviewed}


def _match_results(images: Mapping[ImageKey, LabelledImage], results: Results) -> Detected:
    matched = match_files([(key[0], image.file_name) for key, image in images.items()], results.by_file)
    if not all(image.reviewed for image in images.values()):
        check_any_match(matched, results.by_file)
    return {key: matched[key[0], image.file_name] for key, image in images.items()}


# -- which boxes are used ----------------------------------------------------------------------------------------------


def _choose_boxes(image: LabelledImage, detected: list[Detection] | str | None, config: DetectionsConfig) -> ImageBoxes:
    """One image's boxes: the reviewed ones if the plan wants them and there are any, else the detector's."""
    if config.source != "detector" and image.reviewed:
        return ImageBoxes("annotation", [Detection(ANIMAL, 1.0, *box) for box in image.reviewed.values()], list(image.reviewed))
    if detected is None:
        return ImageBoxes("annotation", NO_BOX, [])
    if isinstance(detected, str):
        return ImageBoxes("detector", detected, [])
    matched = match_animals(image.reviewed, detected)
    return ImageBoxes("detector", detected, [matched.get(i, "") for i in range(len(detected))])


def _repeat_detections(
    images: Mapping[ImageKey, LabelledImage], boxes: Mapping[ImageKey, ImageBoxes], config: DetectionsConfig
) -> dict[ImageKey, list[Detection]]:
    """The detector's unreviewed animals that repeat in the same position at a location, by image."""
    if config.repeat_min_occasions is None:
        return {}
    candidates = [
        (key, detection)
        for key, chosen in boxes.items()
        if chosen.origin == "detector" and not isinstance(chosen.boxes, str)
        for annotation_id, detection in zip(chosen.annotation_ids, chosen.boxes, strict=True)
        if detection.category == ANIMAL and not annotation_id
    ]
    located = [LocatedBox(i, images[key].location, images[key].occasion, detection[2:]) for i, (key, detection) in enumerate(candidates)]
    repeats: dict[ImageKey, list[Detection]] = {}
    for i in sorted(find_repeat_detections(located, config.repeat_min_occasions, config.repeat_iou)):
        key, detection = candidates[i]
        repeats.setdefault(key, []).append(detection)
    return repeats


def _without(chosen: ImageBoxes, repeats: list[Detection]) -> ImageBoxes:
    if isinstance(chosen.boxes, str):
        return chosen
    kept = [(annotation_id, d) for annotation_id, d in zip(chosen.annotation_ids, chosen.boxes, strict=True) if d not in repeats]
    return ImageBoxes(chosen.origin, [d for _, d in kept], [annotation_id for annotation_id, _ in kept])


def _has(boxes: list[Detection] | str, category: str) -> bool:
    return isinstance(boxes, list) and any(d.category == category for d in boxes)


# -- output ------------------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    images: Mapping[ImageKey, LabelledImage],
    detected: Detected,
    people: Collection[ImageKey],
    detector: ChosenDetector | None,
    config: DetectionsConfig,
    notes: Mapping[str, int],
) -> StepOutput:
    boxes = {key: _choose_boxes(image, detected.get(key), config) for key, image in images.items()}
    repeats = _repeat_detections(images, boxes, config)
    boxes |= {key: _without(boxes[key], repeated) for key, repeated in repeats.items()}
    if config.images_with_people == "drop":
        boxes |= {key: ImageBoxes("", PERSON_IN_IMAGE, []) for key in people}
    disagreements = [
        (*key, d.annotation_id, d.kind, d.overlap, d.confidence, *d.box)
        for key, found in detected.items()
        if images[key].reviewed and isinstance(found, list)
        for d in find_disagreements(images[key].reviewed, found)
    ]
    tables: dict[Any, Iterable[tuple[Any, ...]]] = {
        DETECTIONS: [
            (*key, images[key].blob, annotation_id, chosen.origin, *detection)
            for key, chosen in boxes.items()
            if not isinstance(chosen.boxes, str)
            for annotation_id, detection in zip(chosen.annotation_ids, chosen.boxes, strict=True)
        ],
        DETECTION_FAILURES: [(*key, chosen.boxes) for key, chosen in boxes.items() if isinstance(chosen.boxes, str)],
        REPEAT_DETECTIONS: [(*key, images[key].blob, "", "detector", *d) for key, repeated in repeats.items() for d in repeated],
        DISAGREEMENTS: disagreements,
        IMAGES_WITH_PEOPLE: sorted(people),
    }
    for table, rows in tables.items():
        write_table(folder, table, pd.DataFrame(rows, columns=table.names()))
    _write_results_file(folder / RESULTS_FILE, images, boxes, detector, config)
    kinds = Counter(row[3] for row in disagreements)
    extra = {"repeat_detections": sum(map(len, repeats.values())), "images_with_people": len(people), **kinds, **notes}
    return StepOutput(_count(boxes, extra))


def _write_results_file(
    path: Path,
    images: Mapping[ImageKey, LabelledImage],
    boxes: Mapping[ImageKey, ImageBoxes],
    detector: ChosenDetector | None,
    config: DetectionsConfig,
) -> None:
    """Write the boxes in MegaDetector's batch format, for other tools."""
    name = detector.name if detector else config.source
    info: dict[str, Any] = {"detector": name}
    if detector is not None:
        info["detector_metadata"] = {"megadetector_version": name, "typical_detection_threshold": detector.confidence}
    results = [chosen.boxes for chosen in boxes.values()]
    rows = [(i, d) for i, result in enumerate(results) if not isinstance(result, str) for d in result]
    result_boxes = ResultBoxes(
        image=np.array([i for i, _ in rows], np.int64),
        category=[d.category for _, d in rows],
        confidence=np.array([d.confidence for _, d in rows], float),
        boxes=np.array([d[2:] for _, d in rows], float).reshape(-1, 4),
    )
    failures = {i: FAILURE_TEXTS.get(r, r.replace("_", " ")) for i, r in enumerate(results) if isinstance(r, str)}
    write_results(path, info, [f"{key[0]}/{images[key].file_name}" for key in boxes], result_boxes, failures=failures)


def _count(boxes: Mapping[ImageKey, ImageBoxes], extra: Mapping[str, int]) -> Counts:
    """Images with and without a result, the latter by reason; the number of boxes by origin; and ``extra``."""
    dropped = Counter(chosen.boxes for chosen in boxes.values() if isinstance(chosen.boxes, str))
    notes: Counter[str] = Counter(extra)
    for chosen in boxes.values():
        if not isinstance(chosen.boxes, str):
            notes[f"{chosen.origin}_boxes"] += len(chosen.boxes)
            notes["images_without_animal"] += not _has(chosen.boxes, ANIMAL)
    return Counts(kept=len(boxes) - sum(dropped.values()), dropped=dict(dropped), notes={k: n for k, n in notes.items() if n}, unit="images")
