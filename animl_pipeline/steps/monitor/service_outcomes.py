"""From the labels of Animl's images: what the model answered, what people saw, which version served, and the outcome of each sequence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from animl_pipeline.core.category_names import is_person, is_vehicle, role
from animl_pipeline.inference.sequence_outcomes import (
    ModelLabels,
    ReviewedImages,
    SequenceOutcomes,
    find_outcomes,
    number_sequences,
    right_truths,
)

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
NO_DEPLOYMENT = "-default"
"""The end of a location's name where a camera has no deployment. TNC's score leaves such images out, and so do the figures of sequences."""


class ServedModel(NamedTuple):
    """The model in service.

    Attributes:
        model_id: its id in Animl.
        classes: its classes of animals, then its parents.
        equivalents: class → other classes that count as right when they are predicted for it.
        parents: parent → its children.
        meanings: a label's name in lower case → its class, or "" if it means no animal. Other names are outside of the plan.
        served: since when (seconds since 1970) which version serves, in order of time.
        sequence_gap_s: images of a location that are at most this far apart are one sequence.
    """

    model_id: str
    classes: tuple[str, ...]
    equivalents: Mapping[str, Sequence[str]]
    parents: Mapping[str, Sequence[str]]
    meanings: Mapping[str, str]
    served: tuple[tuple[float, str], ...]
    sequence_gap_s: float

    def own_classes(self) -> tuple[str, ...]:
        """The classes without the parents."""
        return tuple(c for c in self.classes if c not in self.parents)


class ServiceData(NamedTuple):
    """Images, objects and answers in service. Objects and answers name their image or object by its position.

    Attributes:
        images: ``source, image_id, location, taken_s, added_s, night, reviewed, random, version, sequence, whole``; ``version`` is a position in
            ``versions``, -1 where none served; ``whole``: all images of the sequence are reviewed.
        objects: ``image, number, locked, truth, animal, detected, validated_s``; ``number`` is the object's in its image, ``animal`` whether a
            model called it one; ``truth`` is text, "" if people saw no animal or did not decide.
        answers: ``object, class_number, confidence, version`` of each label that the model gave.
        right: bool [objects, classes], whether each class is right for the object's truth.
        versions: the versions that served.
        other_versions: number of answers for which Animl notes another version than the one that served.
    """

    images: pd.DataFrame
    objects: pd.DataFrame
    answers: pd.DataFrame
    right: Bools
    versions: tuple[str, ...]
    other_versions: int


class ServiceSequences(NamedTuple):
    """Completely reviewed sequences: a row each with ``location, taken_s, validated_s, night, random, version`` (text), and their outcomes."""

    rows: pd.DataFrame
    outcomes: SequenceOutcomes


def read_service_data(labels: pa.Table, model: ServedModel, random_images: Collection[str]) -> ServiceData:
    """Join labels with what served when.

    Args:
        labels: SERVICE_LABELS, sorted by source, image, object and number; text in dictionaries.
        model: the model in service.
        random_images: ids of images that were drawn at random for review.
    """
    rows = labels.to_pandas()
    codes = [rows[name].cat.codes.to_numpy() for name in ("source", "image_id")]
    new_image = (np.diff(codes[0], prepend=-1) != 0) | (np.diff(codes[1], prepend=-1) != 0)
    image = np.cumsum(new_image) - 1
    versions = tuple(dict.fromkeys(version for _, version in model.served))
    starts = np.array([start for start, _ in model.served])
    at = np.array([versions.index(version) for _, version in model.served], np.int64)

    def version_at(seconds: Floats) -> Ints:
        found = np.searchsorted(starts, seconds, side="right") - 1
        return np.where(found >= 0, at[found], -1) if len(at) else np.full(len(seconds), -1)

    about = ["source", "image_id", "location", "taken_s", "added_s", "night", "reviewed", "tagged_random"]
    images = rows.loc[new_image, about].reset_index(drop=True)
    if rows["source"].nunique() > 1:  # two projects may use one name
        images["location"] = rows.loc[new_image, "source"].astype(str).to_numpy() + "/" + images["location"].astype(str)
    images["random"] = images.pop("tagged_random") | images["image_id"].isin(list(random_images))
    images["version"] = version_at(images["added_s"].to_numpy(np.float64))
    _add_sequences(images, model.sequence_gap_s)
    has_object = rows["object"].to_numpy() >= 0
    rows, image = rows[has_object].reset_index(drop=True), image[has_object]
    new_object = (np.diff(image, prepend=-1) != 0) | (np.diff(rows["object"].to_numpy(), prepend=-1) != 0)
    number = np.cumsum(new_object) - 1
    objects = _read_objects(rows, image, new_object, number, model)
    class_number = _class_numbers(rows["label"], model)
    ours = (rows["model"] == model.model_id).to_numpy() & (class_number >= 0)
    labelled = rows["labelled_s"].fillna(images["added_s"].iloc[image].reset_index(drop=True)).to_numpy(np.float64)
    served = version_at(labelled)
    noted = rows["version"].cat.rename_categories(str).astype(object).to_numpy()
    names = np.array([*versions, ""], object)[served]
    answers = pd.DataFrame({"object": number, "class_number": class_number, "confidence": rows["confidence"], "version": served})[ours]
    right = right_truths(objects["truth"].to_numpy(object), model.own_classes(), model.equivalents, model.parents)
    other = int((ours & (served >= 0) & (noted != "") & (noted != names)).sum())
    return ServiceData(images, objects, answers.reset_index(drop=True), right, versions, other)


def _add_sequences(images: pd.DataFrame, gap_s: float) -> None:
    location = images["location"].astype(object).to_numpy()
    images["sequence"] = number_sequences(location, images["taken_s"].to_numpy(np.float64), gap_s)
    unreviewed = np.bincount(images["sequence"], ~images["reviewed"], minlength=1) > 0
    images["whole"] = ~unreviewed[images["sequence"]] & ~images["location"].astype(str).str.endswith(NO_DEPLOYMENT)


def _read_objects(rows: pd.DataFrame, image: Ints, new_object: Bools, number: Ints, model: ServedModel) -> pd.DataFrame:
    """The objects: an object's truth is its first label that a person validated, as in TNC's score."""
    of_object = rows.loc[new_object, ["object", "locked"]].reset_index(drop=True)
    objects = pd.DataFrame({"image": image[new_object], "number": of_object["object"], "locked": of_object["locked"]})
    by_model = (rows["model"] != "").to_numpy()
    animal = _by_name(rows["label"], lambda name: not (is_person(name) or is_vehicle(name) or role(name) == "empty"), bool)
    objects["detected"] = np.bincount(number, by_model, minlength=len(objects)) > 0
    objects["animal"] = np.bincount(number, by_model & animal, minlength=len(objects)) > 0
    validated = np.flatnonzero((rows["validated"] == "yes").to_numpy())
    first, position = np.unique(number[validated], return_index=True)
    truth = np.full(len(objects), "", object)
    truth[first] = _by_name(rows["label"], lambda name: model.meanings.get(name.casefold(), name), object)[validated[position]]
    objects["truth"] = truth
    objects["validated_s"] = pd.Series(rows["validated_s"].to_numpy(np.float64)).groupby(number).max().to_numpy()
    return objects


def _class_numbers(labels: pd.Series, model: ServedModel) -> Ints:
    """The model's class that each label names, -1 for none. A project may spell a class in another case."""
    own = {c.casefold(): i for i, c in enumerate(model.classes)}
    return np.asarray(_by_name(labels, lambda name: own.get(name.casefold(), -1), np.int64), np.int64)


def _by_name(labels: pd.Series, value_of: Callable[[str], object], kind: type) -> NDArray[Any]:
    """A value for each label, computed once for each name."""
    return np.array([value_of(str(name)) for name in labels.cat.categories], kind)[labels.cat.codes.to_numpy()]


def reviewed_sequences(data: ServiceData, model: ServedModel) -> ServiceSequences:
    """The outcomes of the completely reviewed sequences that were added while a version of the model served."""
    chosen = (data.images["whole"] & (data.images["version"] >= 0)).to_numpy()
    position = np.cumsum(chosen) - 1
    images = data.images[chosen].reset_index(drop=True)
    sequence = pd.factorize(images["sequence"])[0].astype(np.int64)
    objects = data.objects[chosen[data.objects["image"]] & data.objects["locked"]]
    seen, found = objects[objects["truth"] != ""], objects[objects["detected"]]
    reviewed = ReviewedImages(sequence, position[seen["image"]], seen["truth"].to_numpy(object))
    pairs = np.intersect1d(found.index, seen.index)
    labelled, likeliest, probability = _answers_of(data, found.index.to_numpy(), model)
    labels = ModelLabels(
        image=position[found["image"]], labelled=labelled, likeliest=likeliest, probability=probability,
        truth_box=found.index.get_indexer(pairs), truth=seen.index.get_indexer(pairs),
    )  # fmt: skip
    outcomes = find_outcomes(reviewed, labels, model.own_classes(), model.equivalents, model.parents)
    decided = pd.Series(objects["validated_s"].to_numpy()).groupby(sequence[position[objects["image"]]]).max()
    by_sequence = images.groupby(sequence)
    rows = by_sequence[["location", "taken_s", "night", "version"]].first().assign(random=by_sequence["random"].max())
    rows["validated_s"] = decided.reindex(rows.index)
    rows["version"] = np.array(data.versions, object)[rows["version"].to_numpy(np.int64)] if len(rows) else ""
    return ServiceSequences(rows, outcomes)


def _answers_of(data: ServiceData, objects: Ints, model: ServedModel) -> tuple[Bools, Ints, Floats]:
    """Of some objects: which classes the model labelled them with, the most confident one (-1 for none), and its confidence."""
    row = np.full(len(data.objects), -1)
    row[objects] = np.arange(len(objects))
    answers = data.answers[row[data.answers["object"]] >= 0].sort_values("confidence", kind="stable")
    at, number = row[answers["object"]], answers["class_number"].to_numpy(np.int64)
    labelled = np.zeros((len(objects), len(model.classes)), bool)
    labelled[at, number] = True
    likeliest, probability = np.full(len(objects), -1), np.zeros(len(objects))
    own = number < len(model.own_classes())
    likeliest[at[own]], probability[at[own]] = number[own], answers["confidence"].to_numpy(np.float64)[own]  # of several, the last one stays
    return labelled, likeliest, probability


def names_outside_plan(data: ServiceData, model: ServedModel) -> list[tuple[str, int]]:
    """Names of animals that people gave and the plan has no class for, with the number of objects; the most frequent first."""
    truth = data.objects.loc[data.objects["locked"], "truth"]
    counts = truth[~truth.isin([*model.classes, ""])].value_counts()
    return [(str(name), int(n)) for name, n in counts.items() if role(name) == ""]
