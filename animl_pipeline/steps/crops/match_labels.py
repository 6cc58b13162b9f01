"""Decide which labelled annotation gets which box, from the tables only, before any image is opened."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import pandas as pd

from animl_pipeline.config import CropsConfig
from animl_pipeline.core.box_type import BoxTuple, clip_box
from animl_pipeline.core.category_names import is_person, is_vehicle
from animl_pipeline.core.write_megadetector_results import ANIMAL

ImageKey = tuple[str, str]
"""Source and image id."""
ANNOTATION_COLUMNS = ["source", "image_id", "annotation_id", "class_id", "location", "taken", "sequence", "blob", "bytes", "width", "height"]
BOX_COLUMNS = ["source", "image_id", "ymin", "xmin", "ymax", "xmax"]
MIN_SHARE_CLAIMED = 0.5
"""A detection of which this share lies in a box that a person drew is what the person labelled."""
ROUNDING = 1e-6
"""Relative coordinates do not give back whole pixels exactly."""


class Annotation(NamedTuple):
    """An annotation with a class: a row of labels.parquet. ``has_box`` says whether it came with a box."""

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
    has_box: bool

    def drop(self, reason: str) -> DroppedLabel:
        """The record of this annotation without a crop."""
        return DroppedLabel(self.source, self.image_id, self.annotation_id, reason)


class AnimalBox(NamedTuple):
    """The box of an animal: a row of detections.parquet."""

    annotation_id: str
    origin: str
    confidence: float
    box: BoxTuple


class Match(NamedTuple):
    """An annotation and the box to crop for it."""

    annotation: Annotation
    animal: AnimalBox


class DroppedLabel(NamedTuple):
    """An annotation, or one of the boxes of an image-level label, that gets no crop."""

    source: str
    image_id: str
    annotation_id: str
    reason: str


Matches = tuple[list[Match], list[DroppedLabel]]


def match_labels(
    labels: pd.DataFrame,
    dropped_annotations: pd.DataFrame,
    detections: pd.DataFrame,
    failures: pd.DataFrame,
    config: CropsConfig,
    nothing: str | None = None,
) -> Matches:
    """Match annotations and boxes. Each box of each image is matched at most once.

    People and vehicles never match, whatever class the plan gives them (``person_or_vehicle``).

    Other reasons for a dropped label: a reason of the step detections (such as ``image_broken``), ``no_animal_found``, ``ambiguous_label``
    (an image-level label in an image with another class), ``duplicate_label`` (a second one of the same class), ``box_of_another_label``
    (a person drew a box around all animals that were found, and labelled it otherwise or beyond a limit), ``several_boxes``,
    ``too_small``, ``beyond_cap``, ``duplicate_image``, ``duplicate_box``, ``contradictory_label``; ``no_false_box`` (an empty image in which
    the detector found nothing).

    ``nothing``: the class for false boxes, if the plan has it. Each animal that was detected in its images is a false box.
    """
    people = labels["label"].map(lambda label: is_person(label) or is_vehicle(label)).astype(bool)
    rows = labels.loc[people, ["source", "image_id", "annotation_id"]]
    dropped = [DroppedLabel(source, image, annotation, "person_or_vehicle") for source, image, annotation in rows.itertuples(index=False, name=None)]
    failed = dict(zip(zip(failures["source"], failures["image_id"], strict=True), failures["reason"], strict=True))
    animals = _animals_by_image(detections)
    claimed = _boxes_by_image(pd.concat([labels.loc[people, BOX_COLUMNS], dropped_annotations[BOX_COLUMNS]]))
    matches: list[Match] = []
    for image, labelled in sorted(_annotations_by_image(labels[~people]).items()):
        failure = failed.get(image, "no_box")
        no_box_reason = "no_animal_found" if failure == "no_box" else failure
        if labelled[0].class_id == nothing:
            matched_here, dropped_here = _match_false_boxes(labelled[0], animals.get(image, []), failure, config)
        else:
            matched_here, dropped_here = _match_image(labelled, animals.get(image, []), claimed.get(image, []), no_box_reason, config)
        matches += matched_here
        dropped += dropped_here
    unique, repeated = _drop_duplicate_boxes(matches)
    return unique, dropped + repeated


def _annotations_by_image(labels: pd.DataFrame) -> dict[ImageKey, list[Annotation]]:
    by_image: dict[ImageKey, list[Annotation]] = defaultdict(list)
    for row, has_box in zip(labels[ANNOTATION_COLUMNS].itertuples(index=False, name=None), labels["ymin"].notna(), strict=True):
        annotation = Annotation._make((*row, bool(has_box)))
        by_image[annotation.source, annotation.image_id].append(annotation)
    return {image: sorted(annotations) for image, annotations in by_image.items()}


def _animals_by_image(detections: pd.DataFrame) -> dict[ImageKey, list[AnimalBox]]:
    """The boxes of animals only, highest confidence first, without what is beyond the image."""
    rows = detections[detections["category"] == ANIMAL]
    by_image: dict[ImageKey, list[AnimalBox]] = defaultdict(list)
    columns = rows[["source", "image_id", "annotation_id", "origin", "confidence", "ymin", "xmin", "ymax", "xmax"]]
    for source, image_id, annotation_id, origin, confidence, *box in columns.itertuples(index=False, name=None):
        ymin, xmin, ymax, xmax = box
        if inside := clip_box((ymin, xmin, ymax, xmax)):
            by_image[source, image_id].append(AnimalBox(annotation_id, origin, confidence, inside))
    return {image: sorted(animals, key=lambda a: (-a.confidence, a.box)) for image, animals in by_image.items()}


def _boxes_by_image(rows: pd.DataFrame) -> dict[ImageKey, list[BoxTuple]]:
    """The boxes of each image, of rows with a box."""
    by_image: dict[ImageKey, list[BoxTuple]] = defaultdict(list)
    for source, image_id, *box in rows.dropna(subset="ymin").itertuples(index=False, name=None):
        ymin, xmin, ymax, xmax = box
        by_image[source, image_id].append((ymin, xmin, ymax, xmax))
    return by_image


def _match_image(
    annotations: list[Annotation], animals: list[AnimalBox], claimed: list[BoxTuple], no_box_reason: str, config: CropsConfig
) -> Matches:
    """The matches of one image. An annotation with a box gets the detection with its id. ``claimed`` are boxes of other labels."""
    reviewed = {a.annotation_id: a for a in animals if a.annotation_id}
    matches: list[Match] = []
    dropped: list[DroppedLabel] = []
    for annotation in (a for a in annotations if a.has_box):
        if annotation.annotation_id not in reviewed:
            dropped.append(annotation.drop(no_box_reason))
        elif _is_too_small(annotation, reviewed[annotation.annotation_id], config.min_pixels):
            dropped.append(annotation.drop("too_small"))
        else:
            matches.append(Match(annotation, reviewed[annotation.annotation_id]))
    free = [a for a in animals if not a.annotation_id]
    unclaimed = [a for a in free if not any(_share_inside(a.box, box) >= MIN_SHARE_CLAIMED for box in claimed)]
    reason = "box_of_another_label" if free and not unclaimed else no_box_reason
    more_matches, more_dropped = _match_image_level(annotations, unclaimed, reason, config)
    return matches + more_matches, dropped + more_dropped


def _match_image_level(annotations: list[Annotation], free: list[AnimalBox], no_box_reason: str, config: CropsConfig) -> Matches:
    """The matches of an image's labels without a box: they get the boxes without an annotation, if the image has one class only."""
    image_level = [a for a in annotations if not a.has_box]
    if not image_level:
        return [], []
    if len({a.class_id for a in annotations}) > 1:
        return [], [a.drop("ambiguous_label") for a in image_level]
    first, *others = image_level
    dropped = [a.drop("duplicate_label") for a in others]
    if not free:
        return [], [first.drop(no_box_reason), *dropped]
    if config.image_level_label == "drop_image" and len(free) > 1:
        return [], [first.drop("several_boxes"), *dropped]
    large = [a for a in free if not _is_too_small(first, a, config.min_pixels)]
    cap = 1 if config.image_level_label == "highest_confidence" else config.max_per_image_level_label
    dropped += [first.drop("too_small")] * (len(free) - len(large)) + [first.drop("beyond_cap")] * len(large[cap:])
    return [Match(first, a) for a in large[:cap]], dropped


def _match_false_boxes(empty: Annotation, animals: list[AnimalBox], failure: str, config: CropsConfig) -> Matches:
    """A match of an empty image's label with each of its boxes. The limits for labels without a box do not count: all of them are false."""
    large = [a for a in animals if not _is_too_small(empty, a, config.min_pixels)]
    if not animals:
        return [], [empty.drop("no_false_box" if failure == "no_box" else failure)]
    return [Match(empty, a) for a in large], [empty.drop("too_small")] * (len(animals) - len(large))


def _share_inside(box: BoxTuple, outer: BoxTuple) -> float:
    """The share of a box's area that lies in another box."""
    (ymin, xmin, ymax, xmax), (top, left, bottom, right) = box, outer
    height, width = min(ymax, bottom) - max(ymin, top), min(xmax, right) - max(xmin, left)
    return max(height, 0.0) * max(width, 0.0) / max((ymax - ymin) * (xmax - xmin), ROUNDING**2)


def _is_too_small(annotation: Annotation, animal: AnimalBox, min_pixels: int) -> bool:
    ymin, xmin, ymax, xmax = animal.box
    return max((ymax - ymin) * annotation.height, (xmax - xmin) * annotation.width) < min_pixels - ROUNDING


def _drop_duplicate_boxes(matches: list[Match]) -> Matches:
    """Keep one match of all with the same box in the same image file; none if their classes differ."""
    groups: dict[tuple[str, BoxTuple], list[Match]] = defaultdict(list)
    for match in matches:
        groups[match.annotation.blob, match.animal.box].append(match)
    unique: list[Match] = []
    dropped: list[DroppedLabel] = []
    for first, *others in groups.values():
        if any(m.annotation.class_id != first.annotation.class_id for m in others):
            dropped += [m.annotation.drop("contradictory_label") for m in (first, *others)]
            continue
        unique.append(first)
        for match in others:
            same_image = match.annotation[:2] == first.annotation[:2]
            dropped.append(match.annotation.drop("duplicate_box" if same_image else "duplicate_image"))
    return unique, dropped
