"""The step: which boxes of which images, reviewed ones or the detector's, as one table."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.config import DetectionsPlan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Artifact, Counts
from animl_pipeline.steps.detections import labelled_images as differences
from animl_pipeline.steps.detections.detector import ANIMAL, PERSON, Found
from animl_pipeline.steps.detections.iou import same_objects
from animl_pipeline.steps.detections.labelled_images import Image, LabelledImage, images_of, shown_people
from animl_pipeline.steps.detections.megadetector_writer import batch_file
from animl_pipeline.steps.detections.registry import LOOKING, Choice, choose_detector
from animl_pipeline.steps.detections.repeat_detections import Spotted, repeated
from animl_pipeline.steps.detections.results_file import Results, check_some, match_files, read_results, results_by_file
from animl_pipeline.steps.detections.run_detector import look_at
from animl_pipeline.storage.image_index import in_share
from animl_pipeline.storage.step_cache import Made, Store, Workspace, write_table

NO_BOX = "no_box"
PERSON_SHOWN = "person_in_picture"
COLUMNS = {
    "source": "str", "image_id": "str", "blob": "str", "object_id": "str", "origin": "str", "category": "str",
    "confidence": "float64", "ymin": "float64", "xmin": "float64", "ymax": "float64", "xmax": "float64",
}  # fmt: skip
FAILURE_COLUMNS = {"source": "str", "image_id": "str", "reason": "str"}
IMAGE_COLUMNS = {"source": "str", "image_id": "str"}

Looked = dict[Image, list[Found] | str]
"""What the detector, or another tool, says of images."""


class Seen(NamedTuple):
    """An image's boxes with the reviewed object that each one is ("" for none), or the reason for having none."""

    origin: str
    found: list[Found] | str
    object_ids: list[str]


def detect_animals(labels: Artifact, spec: DetectionsPlan, store: Store, settings: Settings) -> Artifact:
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
    config: dict[str, Any] = spec.model_dump(include={"source", "people", "repeat_occasions", "repeat_overlap"})
    digests = {}
    if choice is not None:
        config |= {"recipe": choice.recipe, "image_size": choice.image_size, "confidence": choice.confidence}
        digests["detector"] = choice.sha256
    if results is not None:
        config["confidence"] = spec.confidence
        digests["results"] = hashlib.sha256(results).hexdigest()

    def build(space: Workspace) -> Made:
        images = images_of(store.table(labels, "labels.parquet"))
        looked: Looked = {}
        noted: dict[str, int] = {}
        if results is not None:
            said = results_by_file(results, str(spec.results), spec.confidence)
            looked, noted = _in_results(images, said), {"unusable_boxes": said.unusable}
        elif choice is not None:
            looked = _by_detector(images, choice, spec, store, settings)
        return _write(space, images, looked, shown_people(labels, store), choice, spec, noted)

    return store.make("detections", room="detections", inputs={"labels": labels}, digests=digests, config=config, build=build)


def look_at_share(labels: Artifact, spec: DetectionsPlan, share: int, of: int, store: Store, settings: Settings) -> int:
    """Let the detector look at one share of the pictures ahead of the step, which then remembers; how many there are comes back.

    Shares are by the pictures' content, so that several workers with the same store, on one machine or many, do the work
    once between them.

    Raises:
        As :func:`detect_animals`.
    """
    if spec.source not in LOOKING:
        return 0
    asked = _asked(images_of(store.table(labels, "labels.parquet")), spec)
    mine = [blob for blob in sorted(set(asked.values())) if in_share(blob, share, of)]
    look_at(mine, choose_detector(spec, settings), spec, store, settings)
    return len(mine)


def _asked(images: Mapping[Image, LabelledImage], spec: DetectionsPlan) -> dict[Image, str]:
    """The images that the detector must see, and their pictures: people's boxes suffice, unless persons are to be found, too."""
    every = spec.source == "detector" or spec.people == "drop"
    return {key: image.blob for key, image in images.items() if every or not image.reviewed}


def _by_detector(images: Mapping[Image, LabelledImage], choice: Choice, spec: DetectionsPlan, store: Store, settings: Settings) -> Looked:
    asked = _asked(images, spec)
    answers = look_at(sorted(set(asked.values())), choice, spec, store, settings)
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
    spec: DetectionsPlan,
    noted: Mapping[str, int],
) -> Made:
    people = {key for key in people if key in images} | {key for key, found in looked.items() if _has(found, PERSON)}
    seen = {key: _seen(image, looked.get(key), spec) for key, image in images.items()}
    stones = _stones(images, seen, spec)
    for key, found in stones.items():
        seen[key] = _without(seen[key], found)
    if spec.people == "drop":
        seen |= {key: Seen("", PERSON_SHOWN, []) for key in people}
    differ = [
        (*key, d.object_id, d.kind, d.overlap, d.confidence, *d.box)
        for key, found in looked.items()
        if images[key].reviewed and isinstance(found, list)
        for d in differences.disagreements(images[key].reviewed, found)
    ]
    tables: dict[str, tuple[list[Any], Mapping[str, str]]] = {
        "detections": (_rows(seen, images), COLUMNS),
        "failures": ([(*key, s.found) for key, s in seen.items() if isinstance(s.found, str)], FAILURE_COLUMNS),
        "repeated": ([(*key, images[key].blob, "", "detector", *f) for key, found in stones.items() for f in found], COLUMNS),
        "disagreements": (differ, differences.COLUMNS),
        "people": (sorted(people), IMAGE_COLUMNS),
    }
    for name, (rows, columns) in tables.items():
        write_table(space.out / f"{name}.parquet", pd.DataFrame(rows, columns=list(columns)).astype(dict(columns)))
    told = choice.name if choice else spec.source
    text = batch_file(told, ((f"{key[0]}/{images[key].file_name}", s.found) for key, s in seen.items()), choice.confidence if choice else None)
    (space.out / "megadetector.json").write_text(text, encoding="utf-8")
    kinds = Counter(row[3] for row in differ)
    return Made(_counts(seen, {"repeated_boxes": sum(map(len, stones.values())), "images_with_people": len(people), **kinds, **noted}))


def _has(found: list[Found] | str | None, category: str) -> bool:
    return isinstance(found, list) and any(f.category == category for f in found)


def _seen(image: LabelledImage, looked: list[Found] | str | None, spec: DetectionsPlan) -> Seen:
    """One image's boxes: the reviewed ones where the plan wants them and there are any, else the detector's."""
    if spec.source != "detector" and image.reviewed:
        return Seen("annotation", [Found(ANIMAL, 1.0, *corners) for corners in image.reviewed.values()], list(image.reviewed))
    if looked is None:
        return Seen("annotation", NO_BOX, [])
    if isinstance(looked, str):
        return Seen("detector", looked, [])
    matched = same_objects(image.reviewed, looked, ANIMAL)
    return Seen("detector", looked, [matched.get(i, "") for i in range(len(looked))])


def _stones(images: Mapping[Image, LabelledImage], seen: Mapping[Image, Seen], spec: DetectionsPlan) -> dict[Image, list[Found]]:
    """The detector's animals that nobody reviewed and that come again and again at one spot, by image."""
    if spec.repeat_occasions is None:
        return {}
    boxes = [
        (key, found)
        for key, s in seen.items()
        if s.origin == "detector" and not isinstance(s.found, str)
        for object_id, found in zip(s.object_ids, s.found, strict=True)
        if found.category == ANIMAL and not object_id
    ]
    spotted = [Spotted(i, images[key].place, images[key].occasion, found[2:]) for i, (key, found) in enumerate(boxes)]
    stones: dict[Image, list[Found]] = {}
    for i in sorted(repeated(spotted, spec.repeat_occasions, spec.repeat_overlap)):
        key, found = boxes[i]
        stones.setdefault(key, []).append(found)
    return stones


def _without(seen: Seen, stones: list[Found]) -> Seen:
    if isinstance(seen.found, str):
        return seen
    kept = [(object_id, f) for object_id, f in zip(seen.object_ids, seen.found, strict=True) if f not in stones]
    return Seen(seen.origin, [f for _, f in kept], [object_id for object_id, _ in kept])


def _rows(seen: Mapping[Image, Seen], images: Mapping[Image, LabelledImage]) -> list[tuple[Any, ...]]:
    return [
        (*key, images[key].blob, object_id, s.origin, *found)
        for key, s in seen.items()
        if not isinstance(s.found, str)
        for object_id, found in zip(s.object_ids, s.found, strict=True)
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
