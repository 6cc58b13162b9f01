"""Why an object is left out, if it is: by its name, its review, its picture, its box, or a limit of its class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from numpy.typing import NDArray

from animl_pipeline.config import ClassConfig, LabelsConfig
from animl_pipeline.steps.labels.annotations import Bools, Ints, Objects
from animl_pipeline.steps.labels.class_mapping import EMPTY, EXCLUDED, Meaning

REASONS = ("", EMPTY, EXCLUDED, "unlisted_name", "unreviewed", "over_source_limit", "image_unusable", "box_outside", "over_cap")
"""The first reason that holds counts."""
OVER_CAP = REASONS.index("over_cap")


class Choice(NamedTuple):
    """For each object its class as a number (-1: none) and the reason for which it is left out (0: it stays)."""

    class_id: Ints
    reason: Ints

    def kept(self) -> Bools:
        """Which objects stay."""
        return np.equal(self.reason, 0)


def chosen(objects: Objects, spec: LabelsConfig, meanings: Mapping[str, Meaning], unusable: Bools) -> Choice:
    """The class of each object, or why it is left out.

    Args:
        objects: all sources' objects.
        spec: the label specification.
        meanings: what the names of each source mean.
        unusable: the objects whose picture cannot be had.
    """
    class_id, other = _meant(objects, list(spec.classes), meanings)
    rules = [
        other == REASONS.index(EMPTY),
        other == REASONS.index(EXCLUDED),
        class_id < 0,
        objects.unreviewed,
        objects.images["over_limit"].to_numpy()[objects.image],
        unusable,
        _box_is_empty(objects),
    ]
    choice = Choice(class_id, np.select(rules, list(range(1, len(rules) + 1)), 0))
    choice.reason[_over_cap(objects, choice, spec)] = OVER_CAP
    return choice


def _meant(objects: Objects, classes: list[str], meanings: Mapping[str, Meaning]) -> tuple[Ints, Ints]:
    """Each object's class as a number, -1 for none; and the number of the reason where its name means none on purpose."""
    number = {c: i for i, c in enumerate(classes)}
    class_id = np.full((len(objects.sources), len(objects.names)), -1)
    other = np.zeros_like(class_id)
    for i, source in enumerate(objects.sources):
        for j, name in enumerate(n.casefold() for n in objects.names):
            class_id[i, j] = number.get(meanings[source].classes.get(name, ""), -1)
            other[i, j] = REASONS.index(meanings[source].others.get(name, ""))
    return class_id[objects.source, objects.name], other[objects.source, objects.name]


def without_image(objects: Objects) -> Bools:
    """The objects whose picture did not arrive."""
    without = pc.or_(objects.images["missing"], pc.is_null(objects.images["blob"]))
    return np.asarray(without.to_numpy(), bool)[objects.image]


def _box_is_empty(objects: Objects) -> Bools:
    ymin, xmin, ymax, xmax = objects.boxes.T
    return np.asarray(objects.boxed & ((ymin >= ymax) | (xmin >= xmax)))


def _over_cap(objects: Objects, choice: Choice, spec: LabelsConfig) -> Ints:
    """The objects that a limit leaves out."""
    location, _ = objects.location()
    over = [np.empty(0, np.int64)]
    for number, rule in enumerate(spec.classes.values()):
        rows = np.flatnonzero((choice.reason == 0) & (choice.class_id == number))
        over.append(_over(rows, location[rows], rule, rule.max_per_location or spec.max_per_location, objects, spec.seed))
    return np.concatenate(over)


def _over(rows: Ints, location: Ints, rule: ClassConfig, per_location: int | None, objects: Objects, seed: int) -> Ints:
    """Those of a class's objects that its limits leave out, what the plan prioritizes last."""
    crowded = per_location is not None and len(rows) > 0 and bool(np.bincount(location[location >= 0], minlength=1).max() > per_location)
    if not crowded and (rule.max_count is None or len(rows) <= rule.max_count):
        return np.empty(0, np.int64)
    order = np.lexsort((_ranks(rows, objects, seed), _priorities(rows, rule, objects)))
    rows, location = rows[order], location[order]
    capped = np.zeros(len(rows), bool)
    if per_location is not None:
        capped = (location >= 0) & (pd.Series(location).groupby(location).cumcount().to_numpy() >= per_location)
    left = rows[~capped]
    return np.concatenate([rows[capped], left[rule.max_count :] if rule.max_count is not None else left[:0]])


def _ranks(rows: Ints, objects: Objects, seed: int) -> NDArray[np.uint64]:
    """A number for each object that depends on the seed and its id alone, so that the choice stays as the data grow."""
    ids, sources = objects.annotation_id.take(rows).to_pylist(), [objects.sources[i] for i in objects.source[rows]]
    digests = b"".join(hashlib.sha256(f"{seed}/{s}/{i}".encode()).digest()[:8] for s, i in zip(sources, ids, strict=True))
    return np.frombuffer(digests, ">u8")


def _priorities(rows: Ints, rule: ClassConfig, objects: Objects) -> Ints:
    """The place of each object in the plan's order: its source's or its name's, whichever comes first."""
    last = len(rule.prioritize)
    source = {entry: i for i, entry in reversed(list(enumerate(rule.prioritize)))}
    name = {entry.casefold(): i for i, entry in reversed(list(enumerate(rule.prioritize)))}
    by_source = np.array([source.get(s, last) for s in objects.sources])
    by_name = np.array([name.get(n.casefold(), last) for n in objects.names])
    return np.asarray(np.minimum(by_source[objects.source[rows]], by_name[objects.name[rows]]), np.int64)
