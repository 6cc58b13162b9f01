"""The step: which boxes of which images, reviewed ones or the detector's, as one table."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.config import DetectionsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Artifact, Counts
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
from animl_pipeline.steps.detections import labelled_images as differences
from animl_pipeline.steps.detections.choose_detector import LOOKING, Choice, choose_detector
from animl_pipeline.steps.detections.detector import ANIMAL, PERSON, Detection
from animl_pipeline.steps.detections.iou import same_objects
from animl_pipeline.steps.detections.labelled_images import Image, LabelledImage, images_of, shown_people
from animl_pipeline.steps.detections.megadetector_writer import batch_file
from animl_pipeline.steps.detections.read_results_file import Results, check_some, match_files, read_results, results_by_file
from animl_pipeline.steps.detections.repeat_detections import Spotted, repeated
from animl_pipeline.steps.detections.run_detector import run_detector
from animl_pipeline.storage.image_index import in_batch
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

NO_BOX = "no_box"
PERSON_SHOWN = "person_in_image"
STEP = Step(
    "detections",
    version=1,
    sections=("detections",),
    reads=(LABELS, DROPPED_ANNOTATIONS),
    writes=(DETECTIONS, REPEAT_DETECTIONS, DETECTION_FAILURES, DISAGREEMENTS, IMAGES_WITH_PEOPLE),
    libraries=("pillow", "onnxruntime", "torch", "ultralytics"),
)

Looked = dict[Image, list[Detection] | str]
"""What the detector, or another tool, says of images."""


class Seen(NamedTuple):
    """An image's boxes with the reviewed object that each one is ("" for none), or the reason for having none."""

    origin: str
    found: list[Detection] | str
    object_ids: list[str]


def detect_animals(labels: Artifact, spec: DetectionsConfig, store: Store, settings: Settings) -> Artifact:
    """The animals' boxes in the labels' images: detections.parquet, failures.parquet and megadetector.json.

    repeated.parquet has the detector's boxes that were set aside as stones, disagreements.parquet where people and the
    detector differ (of pictures that both have looked at), people.parquet the pictures that show a person.

    Args:
        labels: the step that gave every object its class.
        spec: whose boxes count, and which detector draws the missing ones.
        store: holds the pictures; remembers per picture what the detector saw in it.
        settings: the cache of weights, and how many pictures are decoded at a time.

    Raises:
        WeightsError: the detector's weights cannot be had.
        DetectionsError: they are not of a detector that finds what the plan wants, or the results file cannot be read.
    """
    choice = choose_detector(spec, settings) if spec.source in LOOKING else None
    results = read_results(spec.results, settings) if spec.results else None
    config: dict[str, Any] = spec.model_dump(include={"source", "images_with_people", "repeat_min_occasions", "repeat_iou"})
    digests = {}
    if choice is not None:
        config |= {"recipe": choice.recipe, "image_size": choice.image_size, "confidence": choice.confidence}
        digests["detector"] = choice.sha256
    if results is not None:
        config["confidence"] = spec.confidence
        digests["results"] = hashlib.sha256(results).hexdigest()

    def build(space: Workspace) -> StepOutput:
        images = images_of(store.table(labels, "labels.parquet"))
        looked: Looked = {}
        noted: dict[str, int] = {}
        if results is not None:
            said = results_by_file(results, str(spec.results), spec.confidence)
            looked, noted = _in_results(images, said), {"unusable_boxes": said.unusable}
        elif choice is not None:
            looked = _by_detector(images, choice, spec, store, settings)
        return _write(space, images, looked, shown_people(labels, store), choice, spec, noted)

    return store.make(STEP, inputs={"labels": labels}, digests=digests, config=config, build=build)


def run_detector_share(labels: Artifact, spec: DetectionsConfig, share: int, of: int, store: Store, settings: Settings) -> int:
    """Let the detector look at one share of the pictures ahead of the step, which then remembers; how many there are comes back.

    Shares are by the pictures' content, so that several workers with the same store, on one machine or many, do the work
    once between them.

    Raises:
        As :func:`detect_animals`.
    """
    if spec.source not in LOOKING:
        return 0
    asked = _asked(images_of(store.table(labels, "labels.parquet")), spec)
    mine = [blob for blob in sorted(set(asked.values())) if in_batch(blob, share, of)]
    run_detector(mine, choose_detector(spec, settings), spec, store, settings)
    return len(mine)


def _asked(images: Mapping[Image, LabelledImage], spec: DetectionsConfig) -> dict[Image, str]:
    """The images that the detector must see, and their pictures: people's boxes suffice, unless persons are to be found, too."""
    every = spec.source == "detector" or spec.images_with_people == "drop"
    return {key: image.blob for key, image in images.items() if every or not image.reviewed}


def _by_detector(images: Mapping[Image, LabelledImage], choice: Choice, spec: DetectionsConfig, store: Store, settings: Settings) -> Looked:
    asked = _asked(images, spec)
    answers = run_detector(sorted(set(asked.values())), choice, spec, store, settings)
    return {key: answers[blob] for key, blob in asked.items()}


def _in_results(images: Mapping[Image, LabelledImage], results: Results) -> Looked:
    said = match_files([(key[0], image.file_name) for key, image in images.items()], results.by_file)
    if not all(image.reviewed for image in images.values()):
        check_some(said, results.by_file)
    return {key: said[key[0], image.file_name] for key, image in images.items()}


def _write(
    space: Workspace,
    images: Mapping[Image, LabelledImage],
    looked: Looked,
    people: set[Image],
    choice: Choice | None,
    spec: DetectionsConfig,
    noted: Mapping[str, int],
) -> StepOutput:
    people = {key for key in people if key in images} | {key for key, found in looked.items() if _has(found, PERSON)}
    seen = {key: _seen(image, looked.get(key), spec) for key, image in images.items()}
    stones = _stones(images, seen, spec)
    for key, found in stones.items():
        seen[key] = _without(seen[key], found)
    if spec.images_with_people == "drop":
        seen |= {key: Seen("", PERSON_SHOWN, []) for key in people}
    differ = [
        (*key, d.annotation_id, d.kind, d.overlap, d.confidence, *d.box)
        for key, found in looked.items()
        if images[key].reviewed and isinstance(found, list)
        for d in differences.disagreements(images[key].reviewed, found)
    ]
    tables = {
        DETECTIONS: _rows(seen, images),
        DETECTION_FAILURES: [(*key, s.found) for key, s in seen.items() if isinstance(s.found, str)],
        REPEAT_DETECTIONS: [(*key, images[key].blob, "", "detector", *f) for key, found in stones.items() for f in found],
        DISAGREEMENTS: differ,
        IMAGES_WITH_PEOPLE: sorted(people),
    }
    for table, rows in tables.items():
        write_table(space.out, table, pd.DataFrame(rows, columns=table.names()))
    told = choice.name if choice else spec.source
    text = batch_file(told, ((f"{key[0]}/{images[key].file_name}", s.found) for key, s in seen.items()), choice.confidence if choice else None)
    (space.out / "megadetector.json").write_text(text, encoding="utf-8")
    kinds = Counter(row[3] for row in differ)
    return StepOutput(_counts(seen, {"repeated_boxes": sum(map(len, stones.values())), "images_with_people": len(people), **kinds, **noted}))


def _has(found: list[Detection] | str | None, category: str) -> bool:
    return isinstance(found, list) and any(f.category == category for f in found)


def _seen(image: LabelledImage, looked: list[Detection] | str | None, spec: DetectionsConfig) -> Seen:
    """One image's boxes: the reviewed ones where the plan wants them and there are any, else the detector's."""
    if spec.source != "detector" and image.reviewed:
        return Seen("annotation", [Detection(ANIMAL, 1.0, *corners) for corners in image.reviewed.values()], list(image.reviewed))
    if looked is None:
        return Seen("annotation", NO_BOX, [])
    if isinstance(looked, str):
        return Seen("detector", looked, [])
    matched = same_objects(image.reviewed, looked, ANIMAL)
    return Seen("detector", looked, [matched.get(i, "") for i in range(len(looked))])


def _stones(images: Mapping[Image, LabelledImage], seen: Mapping[Image, Seen], spec: DetectionsConfig) -> dict[Image, list[Detection]]:
    """The detector's animals that nobody reviewed and that come again and again at one spot, by image."""
    if spec.repeat_min_occasions is None:
        return {}
    boxes = [
        (key, found)
        for key, s in seen.items()
        if s.origin == "detector" and not isinstance(s.found, str)
        for annotation_id, found in zip(s.object_ids, s.found, strict=True)
        if found.category == ANIMAL and not annotation_id
    ]
    spotted = [Spotted(i, images[key].location, images[key].occasion, found[2:]) for i, (key, found) in enumerate(boxes)]
    stones: dict[Image, list[Detection]] = {}
    for i in sorted(repeated(spotted, spec.repeat_min_occasions, spec.repeat_iou)):
        key, found = boxes[i]
        stones.setdefault(key, []).append(found)
    return stones


def _without(seen: Seen, stones: list[Detection]) -> Seen:
    if isinstance(seen.found, str):
        return seen
    kept = [(annotation_id, f) for annotation_id, f in zip(seen.object_ids, seen.found, strict=True) if f not in stones]
    return Seen(seen.origin, [f for _, f in kept], [annotation_id for annotation_id, _ in kept])


def _rows(seen: Mapping[Image, Seen], images: Mapping[Image, LabelledImage]) -> list[tuple[Any, ...]]:
    return [
        (*key, images[key].blob, annotation_id, s.origin, *found)
        for key, s in seen.items()
        if not isinstance(s.found, str)
        for annotation_id, found in zip(s.object_ids, s.found, strict=True)
    ]


def _counts(seen: Mapping[Image, Seen], noted: Mapping[str, int]) -> Counts:
    """Images with an answer, images without one by reason, how many boxes came from whom, and what else was noted."""
    dropped = Counter(s.found for s in seen.values() if isinstance(s.found, str))
    counted: Counter[str] = Counter(noted)
    for s in seen.values():
        if not isinstance(s.found, str):
            counted[f"{s.origin}_boxes"] += len(s.found)
            counted["images_without_animal"] += not _has(s.found, ANIMAL)
    return Counts(kept=len(seen) - sum(dropped.values()), dropped=dict(dropped), noted={k: n for k, n in counted.items() if n}, unit="images")
