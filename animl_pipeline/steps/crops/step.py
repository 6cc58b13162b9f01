"""The step: labels and boxes in, a table of crops out."""

from __future__ import annotations

import hashlib
from collections import Counter

import pandas as pd

from animl_pipeline.config import CropsConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import CropsError
from animl_pipeline.core.records import Artifact, Counts, ModelInput
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import CROPS, DETECTION_FAILURES, DETECTIONS, DROPPED_ANNOTATIONS, DROPPED_LABELS, IMAGES_WITH_PEOPLE, LABELS
from animl_pipeline.core.tables import write_table
from animl_pipeline.steps.crops.extract import Crop, box_key, cut_boxes
from animl_pipeline.steps.crops.match_labels import CORNERS, Chosen, Dropped, Image, choose_boxes, images_with_people
from animl_pipeline.storage.image_index import in_batch
from animl_pipeline.storage.step_cache import BlobColumn, StepOutput, Store, Workspace

STEP = Step(
    "crops",
    version=1,
    sections=("crops", "model_input"),
    reads=(LABELS, DROPPED_ANNOTATIONS, DETECTIONS, DETECTION_FAILURES, IMAGES_WITH_PEOPLE),
    writes=(CROPS, DROPPED_LABELS),
    libraries=("pillow",),
)


COLUMNS = [
    "crop_id", "source", "image_id", "annotation_id", "class_id", "location", "taken", "sequence", *CORNERS,
    "origin", "confidence", "image", "image_bytes", "blob", "bytes", "phash", "with_people",
]  # fmt: skip


def extract_crops(labels: Artifact, detections: Artifact, spec: CropsConfig, model_input: ModelInput, store: Store, settings: Settings) -> Artifact:
    """One crop a labelled animal: crops.parquet, whose blobs are lossless WebP pictures of ``view.size`` squared, and dropped.parquet.

    ``phash`` is what the whole picture looks like, by which copies of it are found; ``with_people`` says that the picture
    shows a person or a vehicle, so that no report shows the crop.

    An object with a reviewed box has the detection of its id. An image-level label goes to the animals that the detector
    found in the image and that are nobody else's, most certain first.

    Args:
        labels: the step that gave every object its class.
        detections: the step that gave every image its boxes.
        spec: which boxes are too small, and how many an image-level label may have.
        view: what the model sees of a box; only size and margin change a crop.
        store: holds the pictures and keeps the crops; remembers which box of which picture was cut.
        settings: how many pictures are worked on at a time.

    Raises:
        CropsError: nothing was left to cut out; the message says what the others were dropped for.
    """

    def build(space: Workspace) -> StepOutput:
        chosen, dropped = choose_boxes(*_tables(labels, detections, store), spec)
        cuts = cut_boxes(chosen, model_input, store, settings)
        return _write(space, chosen, dropped, cuts, images_with_people(labels, detections, store))

    return store.make(
        STEP,
        inputs={"labels": labels, "detections": detections},
        config=spec.model_dump() | {"size": model_input.size, "margin": model_input.margin},
        build=build,
    )


def extract_crops_share(
    labels: Artifact, detections: Artifact, spec: CropsConfig, model_input: ModelInput, share: int, of: int, store: Store, settings: Settings
) -> int:
    """Cut the boxes of one share of the pictures ahead of the step, which then remembers; how many boxes there are comes back.

    Shares are by the pictures' content, so that several workers with the same store do the work once between them.
    """
    chosen, _ = choose_boxes(*_tables(labels, detections, store), spec)
    mine = [c for c in chosen if in_batch(c.what.blob, share, of)]
    cut_boxes(mine, model_input, store, settings)
    return len(mine)


def _tables(labels: Artifact, detections: Artifact, store: Store) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return store.table(labels, "labels.parquet"), store.table(detections, "detections.parquet"), store.table(detections, "failures.parquet")


def _write(space: Workspace, chosen: list[Chosen], dropped: list[Dropped], cuts: dict[str, Crop], people: set[Image]) -> StepOutput:
    rows = []
    for c in chosen:
        crop = cuts.get(box_key(c.what.blob, c.where.box))
        if crop is None:
            dropped.append(c.what.dropped("image_broken"))
        else:
            rows.append(_row(c, crop, (c.what.source, c.what.image_id) in people))
    reasons = dict(Counter(d.reason for d in dropped))
    if not rows:
        raise CropsError(_nothing_left(reasons))
    write_table(space.out, CROPS, pd.DataFrame(sorted(rows), columns=COLUMNS))  # by crop_id, whatever thread was first
    write_table(space.out, DROPPED_LABELS, pd.DataFrame(sorted(dropped), columns=Dropped._fields).astype("str"))
    shy = sum(row[-1] is True for row in rows)
    counts = Counts(kept=len(rows), dropped=reasons, noted={"with_people_never_shown": shy} if shy else {}, unit="crops")
    return StepOutput(counts, blobs=(BlobColumn(file="crops.parquet"),))


def _row(c: Chosen, crop: Crop, with_people: bool) -> tuple[object, ...]:
    what, where = c
    return (
        crop_id(what.blob, where.box), what.source, what.image_id, what.annotation_id, what.class_id, what.location, what.taken, what.sequence, *where.box,
        where.origin, where.confidence, what.blob, what.bytes, crop.blob, crop.bytes, crop.phash, with_people,
    )  # fmt: skip


def crop_id(blob: str, corners: tuple[float, float, float, float]) -> str:
    """A crop's name: of the picture's bytes and the box, so that it stays when a label, an id or a file name changes."""
    return hashlib.sha256(box_key(blob, corners).encode()).hexdigest()[:32]


def _nothing_left(reasons: dict[str, int]) -> str:
    listed = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(reasons.items())) or "there was no labelled object"
    return f"expected boxes to cut out, found none: {listed}; look at the step labels, or lower detections.confidence or crops.min_pixels in the plan"
