"""Why an annotation is left out, if it is: by its label, its review, its image, its box, or a limit of its class.
Also which empty images give crops of false boxes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.config import ClassConfig, LabelsConfig, NothingConfig
from animl_pipeline.config.labels import OtherAnimalConfig
from animl_pipeline.core.category_names import label_forms, role
from animl_pipeline.core.image_orientation import FRAME_MISMATCH
from animl_pipeline.core.sample_limit_and_false_box_types import spread_over_locations
from animl_pipeline.steps.labels.class_mapping import EMPTY, EXCLUDED, ClassMapping
from animl_pipeline.steps.labels.read_annotations import Annotations, Bools, Ints

UNLISTED, AMBIGUOUS, OVER_CLASS_LIMIT = "unlisted_label", "ambiguous_label", "over_class_limit"
REASONS = (
    "",
    EMPTY,
    EXCLUDED,
    UNLISTED,
    "unreviewed",
    "over_source_limit",
    "image_missing",
    FRAME_MISMATCH,
    "box_outside",
    AMBIGUOUS,
    OVER_CLASS_LIMIT,
)
"""The first reason that applies counts."""


class Choice(NamedTuple):
    """The class of each annotation, and whether it is kept.

    Attributes:
        class_number: int [n], position of the class in the plan, -1 for none.
        reason: int [n], position in ``REASONS``; 0 for an annotation that is kept.
    """

    class_number: Ints
    reason: Ints

    def kept(self) -> Bools:
        """Which annotations are kept: bool [n]."""
        return np.equal(self.reason, 0)


def choose_annotations(
    annotations: Annotations, config: LabelsConfig, mappings: Mapping[str, ClassMapping], over_source_limit: Bools, image_missing: Bools
) -> Choice:
    """The class of each annotation, or why it is left out.

    ``over_source_limit``: bool [n], the annotations whose image is left out by its source's limits. ``image_missing``: bool [n], the
    annotations whose image was not downloaded.
    """
    class_number, other = _apply_mappings(annotations, list(config.classes), mappings, config.other_animal)
    rules = [
        other == REASONS.index(EMPTY),
        other == REASONS.index(EXCLUDED),
        class_number < 0,
        annotations.unreviewed,
        over_source_limit,
        image_missing,
        annotations.frame_mismatch,
        _box_is_empty(annotations),
        _is_ambiguous(annotations, class_number, other == REASONS.index(EMPTY)),
    ]
    choice = Choice(class_number, np.select(rules, list(range(1, len(rules) + 1)), 0))
    choice.reason[_over_class_limits(annotations, choice, config)] = REASONS.index(OVER_CLASS_LIMIT)
    choice.reason[choice.kept() & annotations.over_class_limit()] = REASONS.index(OVER_CLASS_LIMIT)  # where more failed than the reserve
    if config.other_animal is not None:
        _leave_out_others(annotations, choice, config.other_animal, len(config.classes))
    return choice


def _apply_mappings(
    annotations: Annotations, classes: list[str], mappings: Mapping[str, ClassMapping], other_animal: OtherAnimalConfig | None
) -> tuple[Ints, Ints]:
    """The class of each annotation, -1 for none; and the reason where its label means "empty" or "excluded": both int [n]."""
    excluded = {label.casefold() for label in other_animal.exclude} if other_animal else set()
    number = {c: i for i, c in enumerate(classes)}
    class_number = np.full((len(annotations.sources), len(annotations.labels)), -1)
    other = np.zeros_like(class_number)
    for i, source in enumerate(annotations.sources):
        class_of, others = mappings[source].classes, mappings[source].others
        for j, label in enumerate(annotations.labels):
            form = next((form for form in label_forms(label) if form in class_of or form in others), "")
            class_number[i, j] = number.get(class_of.get(form, ""), -1)
            other[i, j] = REASONS.index(others.get(form, ""))
            if other_animal and not form and not role(label) and excluded.isdisjoint(label_forms(label)):
                class_number[i, j] = len(classes)
    return class_number[annotations.source, annotations.label], other[annotations.source, annotations.label]


def _box_is_empty(annotations: Annotations) -> Bools:
    ymin, xmin, ymax, xmax = annotations.boxes.T
    return np.asarray(annotations.has_box & ((ymin >= ymax) | (xmin >= xmax)))


def _is_ambiguous(annotations: Annotations, class_number: Ints, is_empty: Bools) -> Bools:
    """Which annotations have no box and another animal in the same image file: it is not known which of the animals that are found they mean.

    Labels without a class count, too, whether they are not listed, not kept or not reviewed. People, vehicles and "empty" do not: they are no
    animals, and a detector tells them apart.
    """
    no_animal = np.array([role(label) in {"people", "vehicle", "empty"} for label in annotations.labels])
    is_animal = ~is_empty & ~no_animal[annotations.label]
    meaning = np.where(class_number >= 0, class_number, class_number.max(initial=0) + 1 + annotations.label)
    image_file = annotations.image_file()
    first = np.zeros(image_file.max(initial=0) + 1, np.int64)
    first[image_file[is_animal]] = meaning[is_animal]
    differs = np.zeros(len(first), bool)
    differs[image_file[is_animal & (meaning != first[image_file])]] = True
    return np.asarray(np.isnan(annotations.boxes[:, 0]) & is_animal & differs[image_file], bool)


# -- limits ------------------------------------------------------------------------------------------------------------


def _over_class_limits(annotations: Annotations, choice: Choice, config: LabelsConfig) -> Ints:
    """The rows of all annotations that a limit of their class leaves out."""
    location = annotations.location()
    over = [np.empty(0, np.int64)]
    for number, rule in enumerate(config.classes.values()):
        rows = np.flatnonzero((choice.reason == 0) & (choice.class_number == number))
        per_location = rule.max_per_location or config.max_per_location
        over.append(_over_limits_of_class(rows, location[rows], rule, per_location, annotations, config.seed))
    return np.concatenate(over)


def _leave_out_others(annotations: Annotations, choice: Choice, config: OtherAnimalConfig, class_number: int) -> None:
    """Change ``choice``: keep a sample of the reviewed annotations of other animals, spread over names and locations; the rest is unlisted."""
    of_class = choice.class_number == class_number
    rows = np.flatnonzero(of_class & (choice.reason == 0) & annotations.reviewed)
    ids, locations = annotations.annotation_id.take(rows).to_pylist(), annotations.images["location"].take(annotations.image[rows]).to_pylist()
    names = [f"{annotations.sources[s]}/{i}" for s, i in zip(annotations.source[rows], ids, strict=True)]
    names_and_locations = [f"{label}\0{location}" if location else "" for label, location in zip(annotations.label[rows], locations, strict=True)]
    kept = rows[spread_over_locations(names, names_and_locations, config.max_images, config.max_per_location)]
    of_class[kept] = False
    choice.class_number[of_class], choice.reason[of_class] = -1, REASONS.index(UNLISTED)


def _over_limits_of_class(rows: Ints, location: Ints, rule: ClassConfig, per_location: int | None, annotations: Annotations, seed: int) -> Ints:
    """Those of a class's rows that its limits leave out. Rows that the plan prioritizes are kept first."""
    crowded = per_location is not None and len(rows) > 0 and bool(np.bincount(location[location >= 0], minlength=1).max() > per_location)
    if not crowded and (rule.max_count is None or len(rows) <= rule.max_count):
        return np.empty(0, np.int64)
    order = np.lexsort((_random_ranks(rows, annotations, seed), _priorities(rows, rule, annotations)))
    rows, location = rows[order], location[order]
    over = np.zeros(len(rows), bool)
    if per_location is not None:
        over = (location >= 0) & (pd.Series(location).groupby(location).cumcount().to_numpy() >= per_location)
    left = rows[~over]
    return np.concatenate([rows[over], left[rule.max_count :] if rule.max_count is not None else left[:0]])


def _random_ranks(rows: Ints, annotations: Annotations, seed: int) -> NDArray[np.uint64]:
    """A random number for each row. It depends on the seed and the annotation's id only, so the choice stays when the data grow."""
    ids, sources = annotations.annotation_id.take(rows).to_pylist(), [annotations.sources[i] for i in annotations.source[rows]]
    digests = b"".join(hashlib.sha256(f"{seed}/{s}/{i}".encode()).digest()[:8] for s, i in zip(sources, ids, strict=True))
    return np.frombuffer(digests, ">u8")


def _priorities(rows: Ints, rule: ClassConfig, annotations: Annotations) -> Ints:
    """The position of each row's source or label in ``prioritize``, whichever comes first."""
    last = len(rule.prioritize)
    source = {entry: i for i, entry in reversed(list(enumerate(rule.prioritize)))}
    label = {entry.casefold(): i for i, entry in reversed(list(enumerate(rule.prioritize)))}
    by_source = np.array([source.get(s, last) for s in annotations.sources])
    by_label = np.array([label.get(text.casefold(), last) for text in annotations.labels])
    return np.asarray(np.minimum(by_source[annotations.source[rows]], by_label[annotations.label[rows]]), np.int64)


def add_empty_images(annotations: Annotations, choice: Choice, config: NothingConfig, class_number: int) -> tuple[Annotations, Choice]:
    """Give one label of each chosen empty image the class for false boxes. It loses its box, because all boxes in the image are false.

    The other labels of empty images stay left out as empty.
    """
    is_empty = choice.reason == REASONS.index(EMPTY)
    candidates = _candidates(annotations, is_empty)
    image = annotations.image[candidates]
    ids, locations = (annotations.images[c].take(image).to_pylist() for c in ("image_id", "location"))
    names = [f"{annotations.sources[s]}/{i}" for s, i in zip(annotations.source[candidates], ids, strict=True)]
    chosen = candidates[spread_over_locations(names, locations, config.max_images, config.max_per_location)]
    numbers, reason, boxes = choice.class_number.copy(), choice.reason.copy(), annotations.boxes.copy()
    numbers[chosen], reason[chosen], boxes[chosen] = class_number, 0, np.nan
    return annotations._replace(boxes=boxes), Choice(numbers, reason)


def _candidates(annotations: Annotations, is_empty: Bools) -> Ints:
    """The first annotation of each downloaded image that only has reviewed labels which mean empty.

    This also holds for all other records of the same file, and for all other files with the same bytes: what a person labelled in any
    of them is no false box.
    """
    other = ~(is_empty & annotations.reviewed)
    blob = annotations.images["blob"].to_pandas().to_numpy(object)[annotations.image]
    rows = pd.DataFrame({"image": annotations.image, "file": annotations.image_file(), "blob": blob, "other": other})
    labelled = rows.groupby("file")["other"].transform("any") | rows.groupby("blob")["other"].transform("any").astype("boolean").fillna(False)
    found = rows[~labelled.to_numpy(bool) & rows["blob"].notna() & ~annotations.image_missing()]
    return np.asarray(found.drop_duplicates("blob").index, np.int64)
