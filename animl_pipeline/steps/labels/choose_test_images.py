"""The step `test_images`: the images on which the model is scored as in production, and what people saw in them.

All completely reviewed images of the frozen test locations count, also empty ones and those of other animals: in production the detector
searches them all. With ``splits.test_after`` there is a second test on known cameras: the images of the locations of train and val from
that day on, without those that were learnt from or whose sequence begins before the day.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from animl_pipeline.config import LabelsConfig, ProductionConfig, SplitsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.capture_times import parse_days, parse_seconds
from animl_pipeline.core.category_names import role
from animl_pipeline.core.image_orientation import FRAME_MISMATCH
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import (
    EXPORT_ANNOTATIONS,
    EXPORT_IMAGES,
    EXPORT_LOCATIONS,
    LATE_IMAGES_LEFT_OUT,
    SPLIT_LOCATIONS,
    TEST_IMAGES,
    TEST_OBJECTS,
)
from animl_pipeline.core.tables import write_table
from animl_pipeline.inference.sequence_outcomes import number_sequences
from animl_pipeline.steps.labels.choose_annotations import REASONS, choose_annotations
from animl_pipeline.steps.labels.class_mapping import EMPTY, map_labels, order_of_classes
from animl_pipeline.steps.labels.read_annotations import Annotations, Bools, Floats, Ints, SourceArtifacts, read_annotations
from animl_pipeline.steps.labels.read_taxonomy import read_taxonomy
from animl_pipeline.storage.store import StepOutput, Store, Workspace

STEP = Step(
    "test_images",
    version=3,
    sections=("labels", "sources", "splits", "production"),
    reads=(EXPORT_IMAGES, EXPORT_ANNOTATIONS, EXPORT_LOCATIONS, SPLIT_LOCATIONS, LATE_IMAGES_LEFT_OUT),
    writes=(TEST_IMAGES, TEST_OBJECTS),
    libraries=(),
)
DEFAULT_DEPLOYMENT = "-default"
"""The end of a location's name where a camera has no deployment for the image's time; Animl's own score leaves such images out."""
OTHER_LOCATION, NOT_REVIEWED, UNCERTAIN, NO_DEPLOYMENT, TRAINING_DATE = (
    "other_location", "not_completely_reviewed", "unknown_animal", "default_deployment", "training_date",
)  # fmt: skip
NOT_SAMPLED = "not_sampled"
LEARNT_FROM = "later_image_learnt_from"
"""A later image of a known camera that was used for training, that a near-duplicate of such an image may be, or that shares a sequence with one."""


class TestLocations(NamedTuple):
    """Which images are tested.

    Attributes:
        test: the test locations.
        known: the locations of train and val.
        late_left_out: source and id of late images that no test may show.
    """

    test: set[str]
    known: set[str]
    late_left_out: set[tuple[str, str]]


def choose_test_images(
    sources: Sequence[SourceArtifacts],
    splits: Artifact,
    config: LabelsConfig,
    production: ProductionConfig,
    dates: SplitsConfig,
    store: Store,
    settings: Settings,
) -> Artifact:
    """Write TEST_IMAGES and TEST_OBJECTS: the reviewed images that are tested, in sequences, and the objects in them.

    Images are left out, and counted, if a label of theirs was not reviewed or means an unknown animal, if a box of theirs refers to an image
    of another shape, if their camera had no deployment, and if the plan's dates give them to training. Where a location has more sequences
    than the plan allows, whole sequences are drawn.

    ``sources``: the sources with their exports, and with the images that are downloaded already, which say how boxes are turned. ``dates``:
    only ``train_only_before`` and ``test_after`` are used.
    """
    taxonomy = read_taxonomy(config, settings)
    key: dict[str, Any] = (
        config.model_dump(mode="json", by_alias=True, include={"classes", "empty", "exclude", "exclude_taxa", "taxonomy"})
        | {
            "unreviewed": {s.source.name: s.source.unreviewed for s in sources},
            "locations": {s.source.name: [s.source.namespace(), s.source.merge_locations_within_m] for s in sources},
            "box_frame": {s.source.name: s.source.box_frame for s in sources},
            "production": production.model_dump(include={"sequence_gap_seconds", "max_sequences_per_location"}),
            "train_only_before": str(dates.train_only_before or ""),
        }
        | order_of_classes(config)
    )
    if dates.test_after:
        key["test_after"] = str(dates.test_after)

    def build(space: Workspace) -> StepOutput:
        annotations = read_annotations(sources, store)
        mappings = {s.source.name: map_labels(config, s.source.name, taxonomy) for s in sources}
        never = np.zeros(len(annotations.image), bool)
        choice = choose_annotations(annotations, config, mappings, never, never)
        images = _read_images(annotations, sources, store)
        locations = _read_locations(splits, store, dates)
        reason = _reasons(images, annotations, choice.reason == REASONS.index(EMPTY), locations, dates)
        images["later"] = images["location"].isin(locations.known)
        reason[(reason == "") & images["later"] & _linked_to_learnt(images, locations, dates, production)] = LEARNT_FROM
        truths = _truths(annotations, choice.class_number, choice.reason == REASONS.index(EMPTY), list(config.classes))
        has_class = np.zeros(len(images), bool)
        has_class[annotations.image[choice.class_number >= 0]] = True
        return _write(space, images, reason, truths, has_class, production)

    inputs = {f"{s.source.name}.{part}": a for s in sources for part, a in (("export", s.export), ("images", s.images)) if a is not None}
    inputs["splits"] = splits
    digests = {"taxonomy": taxonomy.digest} if config.taxonomy else None
    return store.make(STEP, inputs=inputs, digests=digests, config=key, build=build)


def _read_images(annotations: Annotations, sources: Sequence[SourceArtifacts], store: Store) -> pd.DataFrame:
    """All images in the order of ``annotations.images``, with their sources, paths and sizes in the export."""
    columns = ["path", "width", "height"]
    parts = [store.table(s.export, EXPORT_IMAGES, columns).assign(source=s.source.name) for s in sorted(sources, key=lambda s: s.source.name)]
    own = pd.concat(parts, ignore_index=True)
    shared = annotations.images.select(["image_id", "file_name", "location", "taken"]).to_pandas()
    images: pd.DataFrame = pd.concat([own, shared], axis=1)
    return images


def _read_locations(splits: Artifact, store: Store, dates: SplitsConfig) -> TestLocations:
    table = store.table(splits, SPLIT_LOCATIONS)
    test = set(table.loc[table["split"] == "test", "location"])
    if dates.test_after is None:
        return TestLocations(test, set(), set())
    left_out = store.table(splits, LATE_IMAGES_LEFT_OUT, ["source", "image_id"])
    return TestLocations(test, set(table["location"]) - test, set(left_out.itertuples(index=False, name=None)))


def _is_late(images: pd.DataFrame, dates: SplitsConfig) -> Bools:
    """Whether each image was taken on ``test_after`` or later; False where the day is unknown."""
    never = np.zeros(len(images), bool)
    return never if dates.test_after is None else np.asarray(parse_days(images["taken"]) >= np.datetime64(dates.test_after))


def _linked_to_learnt(images: pd.DataFrame, locations: TestLocations, dates: SplitsConfig, production: ProductionConfig) -> Bools:
    """Whether each image, or another of its sequence, is from before the day or must not be tested: bool [images]."""
    early = ~_is_late(images, dates)
    keys = zip(images["source"], images["image_id"], strict=True)
    left_out = np.fromiter((key in locations.late_left_out for key in keys), bool, len(images))
    sequence = number_sequences(images["location"].to_numpy(object), parse_seconds(images["taken"]), production.sequence_gap_seconds)
    linked = np.bincount(sequence, early | left_out, minlength=1) > 0
    return np.asarray(linked[sequence])


def _reasons(images: pd.DataFrame, annotations: Annotations, is_empty: Bools, locations: TestLocations, dates: SplitsConfig) -> pd.Series:
    """Why each image is left out; "" where it counts. The first reason that applies counts."""
    annotated, unreviewed, uncertain, mismatched = (np.zeros(len(images), bool) for _ in range(4))
    annotated[annotations.image] = True
    unreviewed[annotations.image[annotations.unreviewed]] = True
    is_unknown = np.array([role(label) == "unknown" for label in annotations.labels], bool)
    uncertain[annotations.image[is_unknown[annotations.label] & ~is_empty]] = True
    mismatched[annotations.image[annotations.frame_mismatch]] = True
    first_day = dates.train_only_before
    too_early = np.zeros(len(images), bool) if first_day is None else parse_days(images["taken"]) < np.datetime64(first_day)
    rules = {
        OTHER_LOCATION: ~(images["location"].isin(locations.test) | (images["location"].isin(locations.known) & _is_late(images, dates))).to_numpy(),
        NOT_REVIEWED: ~annotated | unreviewed,
        UNCERTAIN: uncertain,
        FRAME_MISMATCH: mismatched,
        NO_DEPLOYMENT: images["location"].str.endswith(DEFAULT_DEPLOYMENT).to_numpy(),
        TRAINING_DATE: too_early,
    }
    return pd.Series(np.select(list(rules.values()), list(rules), ""))


def _truths(annotations: Annotations, class_number: Ints, is_empty: Bools, classes: list[str]) -> pd.DataFrame:
    """The objects of all images: position of the image, annotation id, truth, box."""
    names = np.array([*classes, *annotations.labels], object)
    number = np.where(class_number >= 0, class_number, len(classes) + annotations.label)
    objects = pd.DataFrame(annotations.boxes, columns=["ymin", "xmin", "ymax", "xmax"])
    objects.insert(0, "image", annotations.image)
    objects.insert(1, "annotation_id", annotations.annotation_id.to_pandas().to_numpy())
    objects.insert(2, "truth", names[number])
    return objects[~is_empty]


def _write(
    space: Workspace, images: pd.DataFrame, reason: pd.Series, truths: pd.DataFrame, has_class: Bools, production: ProductionConfig
) -> StepOutput:
    rows = np.flatnonzero(reason == "")
    chosen = images.iloc[rows].reset_index(drop=True)
    seconds = parse_seconds(chosen["taken"])
    chosen["sequence"] = number_sequences(chosen["location"].to_numpy(object), seconds, production.sequence_gap_seconds)
    chosen["weight"] = _sample_weights(chosen, has_class[rows], production.max_sequences_per_location)
    reason.iloc[rows[(chosen["weight"] == 0).to_numpy()]] = NOT_SAMPLED
    position = np.full(len(images), -1)
    position[rows] = np.arange(len(rows))
    chosen = chosen[chosen["weight"] > 0]
    objects = truths.assign(position=position[truths["image"]])
    objects = objects[objects["position"].isin(chosen.index)]
    objects = objects.join(chosen[["source", "image_id"]], on="position").sort_values(["source", "image_id", "annotation_id"], kind="stable")
    objects = objects.drop_duplicates(["source", "image_id", "annotation_id", "ymin", "xmin", "ymax", "xmax"])  # an object's first label counts
    chosen = chosen.sort_values(["source", "image_id"])
    write_table(space.out, TEST_IMAGES, chosen[TEST_IMAGES.names()])
    write_table(space.out, TEST_OBJECTS, objects[TEST_OBJECTS.names()])
    dropped = {name: n for name, n in Counter(reason).items() if name}
    empty = chosen["sequence"].nunique() - chosen.loc[chosen.index.isin(objects["position"]), "sequence"].nunique()
    notes = {"sequences": chosen["sequence"].nunique(), "empty_sequences": empty, "objects": len(objects), "later_images": chosen["later"].sum()}
    return StepOutput(Counts(kept=len(chosen), dropped=dropped, notes={k: int(n) for k, n in notes.items() if n}, unit="images"))


def _sample_weights(images: pd.DataFrame, has_class: Bools, limit: int | None) -> Floats:
    """How many sequences each image's sequence stands for; 0 where it was not drawn.

    A location's sequences with the plan's classes and its other sequences are drawn apart, so that empties never displace animals. The
    draw is by a hash of the sequence's first image, so that it stays the same while the data grow.
    """
    if limit is None or not len(images):
        return np.ones(len(images))
    frame = pd.DataFrame({"sequence": images["sequence"], "location": images["location"], "id": images["image_id"], "has_class": has_class})
    sequences = frame.groupby("sequence").agg(location=("location", "first"), id=("id", "min"), has_class=("has_class", "any"))
    sequences["draw"] = [hashlib.sha256(name.encode()).hexdigest() for name in sequences["id"]]
    ordered = sequences.sort_values("draw")
    group = ordered.groupby(["location", "has_class"])
    size = group["id"].transform("size")
    weight = np.where(group.cumcount() < limit, size / np.minimum(size, limit), 0.0)
    return np.asarray(pd.Series(weight, index=ordered.index).loc[images["sequence"]].to_numpy(), np.float64)
