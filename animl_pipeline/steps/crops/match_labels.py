"""Which labelled object meets which box: on tables only, before any picture is opened."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import pandas as pd

from animl_pipeline.config import CropsConfig
from animl_pipeline.core.category_names import is_person, is_vehicle
from animl_pipeline.core.records import Artifact
from animl_pipeline.storage.step_cache import Store

ANIMAL = "1"
Corners = tuple[float, float, float, float]
Image = tuple[str, str]
LABEL_COLUMNS = ["source", "image_id", "annotation_id", "class_id", "location", "taken", "sequence", "blob", "bytes", "width", "height"]
CORNERS = ["ymin", "xmin", "ymax", "xmax"]


class Labelled(NamedTuple):
    """One object of a class: a row of labels.parquet. ``boxed`` tells whether it came with a box of its own."""

    source: str
    image_id: str
    annotation_id: str
    class_id: str
    location: str
    taken: str
    sequence: str
    blob: str
    bytes: int
    width: int
    height: int
    boxed: bool

    def dropped(self, reason: str) -> Dropped:
        """The record of its not being cut out."""
        return Dropped(self.source, self.image_id, self.annotation_id, reason)


class Animal(NamedTuple):
    """One animal's box in an image: a row of detections.parquet."""

    annotation_id: str
    origin: str
    confidence: float
    box: Corners


class Chosen(NamedTuple):
    """An object and a box to cut out for it."""

    what: Labelled
    where: Animal


class Dropped(NamedTuple):
    """An object, or one of an image-level label's boxes, that is not cut out."""

    source: str
    image_id: str
    annotation_id: str
    reason: str


Choice = tuple[list[Chosen], list[Dropped]]


def choose_boxes(labels: pd.DataFrame, detections: pd.DataFrame, failures: pd.DataFrame, spec: CropsConfig) -> Choice:
    """What is to be cut out, each box of each picture once, and what is not.

    Persons and vehicles are never cut out, whatever class the plan gives them (person_or_vehicle).

    Other reasons for a drop: the detections' own (such as picture_broken), no_animal_found, ambiguous_label (an image-level label
    in an image with another class), duplicate_label (a second one of the same class), several_boxes, too_small, beyond_cap,
    duplicate_picture, duplicate_box, contradictory_label.
    """
    animals = _animals_by_image(detections)
    failed = dict(zip(zip(failures["source"], failures["image_id"], strict=True), failures["reason"], strict=True))
    chosen: list[Chosen] = []
    people = labels["label"].map(lambda name: is_person(name) or is_vehicle(name)).astype(bool)
    columns = labels.loc[people, ["source", "image_id", "annotation_id"]]
    dropped = [Dropped(source, image, of, "person_or_vehicle") for source, image, of in columns.itertuples(index=False, name=None)]
    for image, objects in sorted(_objects_by_image(labels[~people]).items()):
        reason = failed.get(image, "no_box")
        some, others = _in_image(objects, animals.get(image, []), "no_animal_found" if reason == "no_box" else reason, spec)
        chosen += some
        dropped += others
    once, again = _each_box_once(chosen)
    return once, dropped + again


def _objects_by_image(labels: pd.DataFrame) -> dict[Image, list[Labelled]]:
    found: dict[Image, list[Labelled]] = defaultdict(list)
    for row, boxed in zip(labels[LABEL_COLUMNS].itertuples(index=False, name=None), labels["ymin"].notna(), strict=True):
        item = Labelled._make((*row, bool(boxed)))
        found[item.source, item.image_id].append(item)
    return {image: sorted(objects) for image, objects in found.items()}


def _animals_by_image(detections: pd.DataFrame) -> dict[Image, list[Animal]]:
    """Animals only, persons and vehicles never; most certain first."""
    rows = detections[detections["category"] == ANIMAL]
    found: dict[Image, list[Animal]] = defaultdict(list)
    columns = rows[["source", "image_id", "annotation_id", "origin", "confidence", *CORNERS]]
    for source, image_id, annotation_id, origin, confidence, *corners in columns.itertuples(index=False, name=None):
        ymin, xmin, ymax, xmax = corners
        found[source, image_id].append(Animal(annotation_id, origin, confidence, (ymin, xmin, ymax, xmax)))
    return {image: sorted(animals, key=lambda a: (-a.confidence, a.box)) for image, animals in found.items()}


def _in_image(objects: list[Labelled], animals: list[Animal], nothing: str, spec: CropsConfig) -> Choice:
    """One image's choice; ``nothing`` is the reason to give where an object has no box."""
    own = {a.annotation_id: a for a in animals if a.annotation_id}
    chosen: list[Chosen] = []
    dropped: list[Dropped] = []
    for item in (o for o in objects if o.boxed):
        if item.annotation_id not in own:
            dropped.append(item.dropped(nothing))
        elif _too_small(item, own[item.annotation_id], spec.min_pixels):
            dropped.append(item.dropped("too_small"))
        else:
            chosen.append(Chosen(item, own[item.annotation_id]))
    some, others = _image_level(objects, [a for a in animals if not a.annotation_id], nothing, spec)
    return chosen + some, dropped + others


def _image_level(objects: list[Labelled], free: list[Animal], nothing: str, spec: CropsConfig) -> Choice:
    """The choice for an image's labels without a box: all animals that are nobody else's, if the image has one class only."""
    level = [o for o in objects if not o.boxed]
    if not level:
        return [], []
    if len({o.class_id for o in objects}) > 1:
        return [], [o.dropped("ambiguous_label") for o in level]
    item, *others = level
    dropped = [o.dropped("duplicate_label") for o in others]
    if not free:
        return [], [item.dropped(nothing), *dropped]
    if spec.image_level_label == "drop_image" and len(free) > 1:
        return [], [item.dropped("several_boxes"), *dropped]
    large = [a for a in free if not _too_small(item, a, spec.min_pixels)]
    cap = 1 if spec.image_level_label == "highest_confidence" else spec.max_per_image_level_label
    dropped += [item.dropped("too_small")] * (len(free) - len(large)) + [item.dropped("beyond_cap")] * len(large[cap:])
    return [Chosen(item, a) for a in large[:cap]], dropped


def _too_small(item: Labelled, animal: Animal, min_pixels: int) -> bool:
    ymin, xmin, ymax, xmax = animal.box
    longer = max((ymax - ymin) * item.height, (xmax - xmin) * item.width)
    return longer < min_pixels - 1e-6  # relative corners do not give back whole pixels exactly


def _each_box_once(chosen: list[Chosen]) -> Choice:
    """One of all that have the same box in the same picture, whatever its name; none where their classes differ."""
    groups: dict[tuple[str, Corners], list[Chosen]] = defaultdict(list)
    for c in chosen:
        groups[c.what.blob, c.where.box].append(c)
    once: list[Chosen] = []
    dropped: list[Dropped] = []
    for first, *others in groups.values():
        if any(c.what.class_id != first.what.class_id for c in others):
            dropped += [c.what.dropped("contradictory_label") for c in (first, *others)]
            continue
        once.append(first)
        dropped += [c.what.dropped(_same_as(first, c)) for c in others]
    return once, dropped


def _same_as(first: Chosen, other: Chosen) -> str:
    return "duplicate_box" if first.what[:2] == other.what[:2] else "duplicate_image"


def images_with_people(labels: Artifact, detections: Artifact, store: Store) -> set[Image]:
    """Images with a person or a vehicle, as far as people have labelled one or the detector has found one."""
    boxes = store.table(detections, "detections.parquet")
    tables = [boxes[boxes["category"] != ANIMAL]]
    if "people.parquet" in store.files(detections):  # persons labelled, and found beside reviewed boxes
        tables.append(store.table(detections, "people.parquet"))
    for name in {"labels.parquet", "dropped.parquet"} & set(store.files(labels)):
        named = store.table(labels, name)
        tables.append(named[named["label"].map(is_vehicle).astype(bool)])
    return {image for table in tables for image in zip(table["source"], table["image_id"], strict=True)}
