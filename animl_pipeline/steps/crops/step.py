"""The step crops: labels and boxes in, one crop for each labelled animal out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import pandas as pd

from animl_pipeline.config import CropsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.box_type import BoxTuple
from animl_pipeline.core.category_names import is_vehicle
from animl_pipeline.core.errors import CropsError
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, DETECTION_FAILURES, DETECTIONS, DROPPED_ANNOTATIONS, DROPPED_LABELS, IMAGES_WITH_PEOPLE, LABELS
from animl_pipeline.core.tables import write_table
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.crops.extract import IMAGE_BROKEN, Crop, box_key, extract_boxes
from animl_pipeline.steps.crops.match_labels import DroppedLabel, ImageKey, Match, Matches, match_labels
from animl_pipeline.storage.image_index import in_batch
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace

STEP = Step(
    "crops",
    version=2,
    sections=("crops", "model_input"),
    reads=(LABELS, DROPPED_ANNOTATIONS, DETECTIONS, DETECTION_FAILURES, IMAGES_WITH_PEOPLE),
    writes=(CROPS, DROPPED_LABELS),
    libraries=("pillow",),
)


def extract_crops(
    labels: Artifact, detections: Artifact, config: CropsConfig, model_input: ModelInput, store: Store, settings: Settings, nothing: str | None = None
) -> Artifact:
    """Extract one crop for each labelled animal: crops.parquet, and dropped.parquet with the labels that have none.

    A crop is a lossless WebP image of ``model_input.size`` x ``model_input.size`` pixels. An annotation with a reviewed box gets the
    detection with its id. An image-level label goes to the animals that the detector found and that have no annotation, highest confidence
    first. ``with_people`` marks crops of images with a person or vehicle; reports never show them.

    ``model_input``: what the model sees of a box; only size and margin change a crop. ``nothing``: the class for false boxes; None: the plan
    has none.

    Raises:
        CropsError: no crop is left; the message says why labels were dropped.
    """

    def build(space: Workspace) -> StepOutput:
        matches, dropped = _match(labels, detections, config, store, nothing)
        crops = extract_boxes(matches, model_input, store, settings)
        return _write(space, matches, dropped, crops, _images_with_people(labels, detections, store))

    return store.make(
        STEP,
        inputs={"labels": labels, "detections": detections},
        config=config.model_dump() | {"size": model_input.size, "margin": model_input.margin} | ({"nothing": nothing} if nothing else {}),
        build=build,
    )


def extract_crops_share(
    labels: Artifact,
    detections: Artifact,
    config: CropsConfig,
    model_input: ModelInput,
    share: int,
    of: int,
    store: Store,
    settings: Settings,
    nothing: str | None = None,
) -> int:
    """Extract the crops of share number ``share`` (from 0) of the images before the step does, and return the number of crops.

    Shares are made from the images' sha256, so that several workers with the same store extract each crop once.
    """
    matches, _ = _match(labels, detections, config, store, nothing)
    mine = [m for m in matches if in_batch(m.annotation.blob, share, of)]
    extract_boxes(mine, model_input, store, settings)
    return len(mine)


def crop_id(blob: str, box: BoxTuple) -> str:
    """A crop's id, made from the image's bytes and the box, so that it stays the same when a label, an image id or a file name changes."""
    return hashlib.sha256(box_key(blob, box).encode()).hexdigest()[:32]


def _match(labels: Artifact, detections: Artifact, config: CropsConfig, store: Store, nothing: str | None) -> Matches:
    labelled, dropped = store.table(labels, LABELS), store.table(labels, DROPPED_ANNOTATIONS)
    return match_labels(labelled, dropped, store.table(detections, DETECTIONS), store.table(detections, DETECTION_FAILURES), config, nothing)


def _images_with_people(labels: Artifact, detections: Artifact, store: Store) -> set[ImageKey]:
    """Images with a person or a vehicle that people labelled or the detector found."""
    boxes = store.table(detections, DETECTIONS, ["source", "image_id", "category"])
    tables = [boxes[boxes["category"] != ANIMAL], store.table(detections, IMAGES_WITH_PEOPLE)]
    for table in (LABELS, DROPPED_ANNOTATIONS):
        labelled = store.table(labels, table, ["source", "image_id", "label"])
        tables.append(labelled[labelled["label"].map(is_vehicle).astype(bool)])
    return {image for table in tables for image in zip(table["source"], table["image_id"], strict=True)}


def _write(space: Workspace, matches: list[Match], dropped: list[DroppedLabel], crops: Mapping[str, Crop], with_people: set[ImageKey]) -> StepOutput:
    rows = []
    for annotation, animal in matches:
        crop = crops.get(box_key(annotation.blob, animal.box))
        if crop is None:
            dropped.append(annotation.drop(IMAGE_BROKEN))
            continue
        source, image_id, annotation_id, class_id, location, taken, sequence, *_ = annotation
        rows.append((
            crop_id(annotation.blob, animal.box), source, image_id, annotation_id, class_id, location, taken, sequence, *animal.box, animal.origin,
            animal.confidence, annotation.blob, annotation.bytes, crop.blob, crop.bytes, crop.phash, (source, image_id) in with_people,
        ))  # fmt: skip
    counts = Counts(kept=len(rows), dropped=dict(Counter(d.reason for d in dropped)), unit="crops")
    if not rows:
        raise CropsError(
            f"expected boxes to crop, found none: {counts.drop_reasons() or 'there is no labelled annotation'}; look at the step labels, or lower "
            "detections.confidence or crops.min_pixels in the plan",
            code="no_crops",
            dropped=counts.dropped,
        )
    write_table(space.out, CROPS, pd.DataFrame(sorted(rows), columns=CROPS.names()))
    write_table(space.out, DROPPED_LABELS, pd.DataFrame(sorted(dropped), columns=DROPPED_LABELS.names()))
    hidden = sum(row[-1] for row in rows)
    notes = {"with_people_never_shown": hidden} if hidden else {}
    return StepOutput(counts.model_copy(update={"notes": notes}), blobs=(BlobColumn(file=CROPS.file),))
