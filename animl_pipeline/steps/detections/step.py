"""The step detections: the boxes of all labelled images as one table, reviewed by people or found by a detector."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import redact_url
from animl_pipeline.core.sample_limit_and_false_box_types import FalseBoxClass
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import (
    DETECTION_FAILURES,
    DETECTIONS,
    DISAGREEMENTS,
    DROPPED_ANNOTATIONS,
    IMAGES_WITH_PEOPLE,
    LABELS,
    REPEAT_DETECTIONS,
)
from animl_pipeline.core.tables import Table, write_table
from animl_pipeline.core.write_megadetector_results import ANIMAL, PERSON, ResultBoxes, write_results
from animl_pipeline.steps.detections.box_overlap import LocatedBox, find_disagreements, find_repeat_detections, match_animals
from animl_pipeline.steps.detections.choose_detector import DETECTOR_SOURCES, ChosenDetector, choose_detector
from animl_pipeline.steps.detections.detector import Detection
from animl_pipeline.steps.detections.labelled_images import ImageKey, LabelledImage, images_labelled_person, images_of_class, read_labelled_images
from animl_pipeline.steps.detections.match_results_by_path import match_results
from animl_pipeline.steps.detections.read_results_file import parse_results, read_results_file
from animl_pipeline.steps.detections.run_detector import IMAGE_BROKEN, run_detector
from animl_pipeline.storage.image_index import in_batch
from animl_pipeline.storage.store import StepOutput, Store, Workspace

STEP = Step(
    "detections",
    version=3,
    sections=("detections",),
    reads=(LABELS, DROPPED_ANNOTATIONS),
    writes=(DETECTIONS, REPEAT_DETECTIONS, DETECTION_FAILURES, DISAGREEMENTS, IMAGES_WITH_PEOPLE),
    libraries=("pillow", "onnxruntime", "torch", "ultralytics"),
)
RESULTS_FILE = "megadetector.json"
NO_BOX = "no_box"
PERSON_IN_IMAGE = "person_in_image"
ONLY_REPEATS = "only_repeat_detections"
FAILURE_TEXTS = {IMAGE_BROKEN: "image access failure"}
"""The words of MegaDetector's format for a failure, where it has its own."""

Detected = dict[ImageKey, list[Detection] | str]
"""The detections of each image that a detector or a results file was asked for, or the reason why there are none."""


class ImageBox(NamedTuple):
    """A box that the pipeline uses. ``origin`` is annotation or detector; ``annotation_id`` is empty for a box without a review."""

    image: ImageKey
    annotation_id: str
    origin: str
    detection: Detection


class ResultsFile(NamedTuple):
    """The content of a results file, its path or address for messages, and source → the folder by which its files are recognised."""

    content: bytes
    name: str
    image_folders: Mapping[str, str]


def detect_animals(
    labels: Artifact,
    config: DetectionsConfig,
    store: Store,
    settings: Settings,
    image_folders: Mapping[str, str] = MappingProxyType({}),
    false_boxes: FalseBoxClass | None = None,
) -> Artifact:
    """Collect the boxes of all labelled images: detections.parquet and, in MegaDetector's format, megadetector.json.

    Further tables: detector_failures.parquet (images without boxes), repeat_detections.parquet (detector boxes that are not used, because
    they repeat at a location), disagreements.parquet (between people and the detector, for images that both have looked at) and
    images_with_people.parquet.

    ``image_folders``: source → its ``images`` in the plan, by which the files of a results file are recognised. ``false_boxes``: the class of
    empty images, whose boxes count from another confidence on; None: the plan has no such class.

    Raises:
        WeightsError: the detector's weights cannot be loaded.
        DetectionsError: the detector does not fit the plan, it fails, or the results file cannot be read.
        DetectorUnreachableError: the detector's endpoint does not answer now.
    """
    detector = choose_detector(config, settings) if config.source in DETECTOR_SOURCES else None
    image_folders = {source: redact_url(folder) for source, folder in image_folders.items()}
    results_file = None
    if config.results:
        results_file = ResultsFile(read_results_file(config.results, settings), str(config.results), image_folders)
    key_config = _key_config(config, detector, results_file, false_boxes)
    digests = {"results": hashlib.sha256(results_file.content).hexdigest()} if results_file is not None else {}

    def build(space: Workspace) -> StepOutput:
        images = read_labelled_images(labels, store)
        empty = images_of_class(false_boxes.id, labels, store) if false_boxes else set()
        detected: Detected = {}
        notes: dict[str, int] = {}
        if detector or results_file is not None:
            detected, notes = _detect(images, images.keys() - empty, config, results_file, store, settings)
        if empty:
            detected |= _detect(images, empty, _on_empty_images(config, false_boxes), results_file, store, settings)[0]
        people = images_labelled_person(labels, store) & images.keys()
        people |= {key for key, found in detected.items() if isinstance(found, list) and any(d.category == PERSON for d in found)}
        return _write(space.out, images, detected, people, detector, config, notes, empty)

    return store.make(STEP, inputs={"labels": labels}, digests=digests, config=key_config, build=build)


def _key_config(
    config: DetectionsConfig, detector: ChosenDetector | None, results_file: ResultsFile | None, false_boxes: FalseBoxClass | None
) -> dict[str, Any]:
    """The values that are part of the cache key."""
    key: dict[str, Any] = config.model_dump(include={"source", "images_with_people", "repeat_min_occasions", "repeat_iou"})
    if detector is not None:
        key["detector"] = detector.identity()
    if results_file is not None:
        key |= config.model_dump(include={"confidence", "results_folders", "results_frame"})
        key["image_folders"] = results_file.image_folders
    if false_boxes is not None:
        key["false_boxes"] = list(false_boxes)
    return key


def _detect(
    images: Mapping[ImageKey, LabelledImage],
    wanted: Collection[ImageKey],
    config: DetectionsConfig,
    results_file: ResultsFile | None,
    store: Store,
    settings: Settings,
) -> tuple[Detected, dict[str, int]]:
    """The detections of the wanted images, from the results file or else by the detector, and what is to be counted besides."""
    if results_file is not None:
        results = parse_results(results_file.content, results_file.name, config.confidence)
        matched, notes = match_results(images, results, config, results_file.image_folders)
        return {key: matched[key] for key in images if key in wanted}, notes
    blobs = _images_to_detect({key: image for key, image in images.items() if key in wanted}, config)
    found = run_detector(sorted(set(blobs.values())), choose_detector(config, settings), config, store, settings)
    return {image: found[blob] for image, blob in blobs.items()}, {}


def run_detector_share(
    labels: Artifact, config: DetectionsConfig, share: int, of: int, store: Store, settings: Settings, false_boxes: FalseBoxClass | None = None
) -> int:
    """Run the detector over share number ``share`` (from 0) of the images before the step does, and return their number.

    The step then finds the detections in the store's index. Shares are made from the images' sha256, so that workers with the same store,
    on one machine or several, detect each image once. Raises as :func:`detect_animals`.
    """
    if config.source not in DETECTOR_SOURCES:
        return 0
    images = read_labelled_images(labels, store)
    empty = images_of_class(false_boxes.id, labels, store) if false_boxes else set()
    done = 0
    for keys, of_these in ((images.keys() - empty, config), (empty, _on_empty_images(config, false_boxes))):
        if not keys:
            continue
        blobs = set(_images_to_detect({key: images[key] for key in keys}, of_these).values())
        mine = [blob for blob in sorted(blobs) if in_batch(blob, share, of)]
        run_detector(mine, choose_detector(of_these, settings), of_these, store, settings)
        done += len(mine)
    return done


def _on_empty_images(config: DetectionsConfig, false_boxes: FalseBoxClass | None) -> DetectionsConfig:
    """The section as it holds for empty images: the model must know the boxes that it will meet in production."""
    confidence = false_boxes.detector_confidence if false_boxes else None
    return config if confidence is None else config.model_copy(update={"confidence": confidence})


def _images_to_detect(images: Mapping[ImageKey, LabelledImage], config: DetectionsConfig) -> dict[ImageKey, str]:
    """Image → blob of the images for which the detector must run: those without reviewed boxes, and all if it must find people."""
    all_images = config.source == "detector" or config.images_with_people == "drop"
    return {key: image.blob for key, image in images.items() if all_images or not image.reviewed}


def _choose_boxes(key: ImageKey, image: LabelledImage, detected: list[Detection] | str | None, config: DetectionsConfig) -> list[ImageBox] | str:
    """One image's boxes: the reviewed ones if the plan wants them and there are any, else the detector's; or the reason why there are none."""
    if config.source != "detector" and image.reviewed:
        return [ImageBox(key, annotation_id, "annotation", Detection(ANIMAL, 1.0, *box)) for annotation_id, box in image.reviewed.items()]
    if detected is None or isinstance(detected, str):
        return detected or NO_BOX
    matched = match_animals(image.reviewed, detected)
    return [ImageBox(key, matched.get(i, ""), "detector", detection) for i, detection in enumerate(detected)]


def _find_repeats(boxes: list[ImageBox], images: Mapping[ImageKey, LabelledImage], empty: set[ImageKey], config: DetectionsConfig) -> set[int]:
    """Positions of the detector's unreviewed animals that repeat in the same position at a location. All boxes of empty images are used."""
    if config.repeat_min_occasions is None:
        return set()
    located = [
        LocatedBox(i, images[b.image].location, images[b.image].occasion, b.detection[2:])
        for i, b in enumerate(boxes)
        if b.origin == "detector" and not b.annotation_id and b.detection.category == ANIMAL and b.image not in empty
    ]
    return find_repeat_detections(located, config.repeat_min_occasions, config.repeat_iou)


def _write(
    folder: Path,
    images: Mapping[ImageKey, LabelledImage],
    detected: Detected,
    people: set[ImageKey],
    detector: ChosenDetector | None,
    config: DetectionsConfig,
    notes: Mapping[str, int],
    empty: set[ImageKey],
) -> StepOutput:
    chosen = {key: _choose_boxes(key, image, detected.get(key), config) for key, image in images.items()}
    boxes = [box for image_boxes in chosen.values() if not isinstance(image_boxes, str) for box in image_boxes]
    failures = {key: reason for key, reason in chosen.items() if isinstance(reason, str)}
    repeats = _find_repeats(boxes, images, empty, config)
    repeated, boxes = [boxes[i] for i in sorted(repeats)], [box for i, box in enumerate(boxes) if i not in repeats]
    with_animal = {box.image for box in boxes if box.detection.category == ANIMAL}
    failures |= {box.image: ONLY_REPEATS for box in repeated if box.image not in with_animal}
    if config.images_with_people == "drop":
        boxes = [box for box in boxes if box.image not in people]
        failures |= dict.fromkeys(people, PERSON_IN_IMAGE)
    disagreements = [
        (*key, *row)
        for key, found in detected.items()
        if images[key].reviewed and isinstance(found, list)
        for row in find_disagreements(images[key].reviewed, found)
    ]
    tables: dict[Table, list[tuple[Any, ...]]] = {
        DETECTIONS: [(*b.image, images[b.image].blob, b.annotation_id, b.origin, *b.detection) for b in boxes],
        REPEAT_DETECTIONS: [(*b.image, images[b.image].blob, b.annotation_id, b.origin, *b.detection) for b in repeated],
        DETECTION_FAILURES: [(*key, reason) for key, reason in sorted(failures.items())],
        DISAGREEMENTS: disagreements,
        IMAGES_WITH_PEOPLE: sorted(people),
    }
    for table, rows in tables.items():
        write_table(folder, table, pd.DataFrame(rows, columns=table.names()))
    not_detected = {key: reason for key, reason in failures.items() if reason != ONLY_REPEATS}
    _write_results_file(folder / RESULTS_FILE, images, boxes, not_detected, detector, config)
    counted = Counter(f"{b.origin}_boxes" for b in boxes) + Counter(row[3] for row in disagreements) + Counter(notes)
    without_box = images.keys() - failures.keys() - {b.image for b in boxes if b.detection.category == ANIMAL}
    counted |= Counter(images_without_animal=len(without_box - empty), empty_images=len(empty), empty_images_without_box=len(without_box & empty))
    counted |= Counter(repeat_detections=len(repeated), images_with_people=len(people))
    dropped = dict(Counter(failures.values()))
    return StepOutput(Counts(kept=len(images) - len(failures), dropped=dropped, notes={k: n for k, n in counted.items() if n}, unit="images"))


def _write_results_file(
    path: Path,
    images: Mapping[ImageKey, LabelledImage],
    boxes: list[ImageBox],
    failures: Mapping[ImageKey, str],
    detector: ChosenDetector | None,
    config: DetectionsConfig,
) -> None:
    """Write the boxes in MegaDetector's batch format, for other tools."""
    info: dict[str, Any] = {"detector": detector.name if detector else config.source}
    if detector is not None:
        info["detector_metadata"] = {"megadetector_version": detector.name, "typical_detection_threshold": detector.confidence}
    position = {key: i for i, key in enumerate(images)}
    columns = ResultBoxes(
        image=np.array([position[b.image] for b in boxes], np.int64),
        category=[b.detection.category for b in boxes],
        confidence=np.array([b.detection.confidence for b in boxes], float),
        boxes=np.array([b.detection[2:] for b in boxes], float).reshape(-1, 4),
    )
    files = [f"{source}/{image.file_name}" for (source, _), image in images.items()]
    reasons = {position[key]: FAILURE_TEXTS.get(reason, reason.replace("_", " ")) for key, reason in failures.items()}
    write_results(path, info, files, columns, failures=reasons)
