"""All tables that pass between steps: file, columns, types and units. The only place where columns are declared.

``docs/data-contracts.md`` is made from this module (``make docs-reference``). Boxes in tables are ``ymin, xmin, ymax, xmax``,
relative to the image's height and width. Text is empty where a value is unknown.
"""

from __future__ import annotations

from animl_pipeline.core.tables import Column, Table

SOURCE = Column("source", "string", "name of the plan's source")
IMAGE_ID = Column("image_id", "string", "the image's id in its export")
ANNOTATION_ID = Column("annotation_id", "string", "the annotation's id in its export")
CLASS_ID = Column("class_id", "string", "class of the model")
LOCATION = Column("location", "string", "where the camera stood, as <namespace>/<location>; empty where unknown")
TAKEN = Column("taken", "string", "when the image was taken, as the export writes it; empty where unknown")
SEQUENCE = Column("sequence", "string", "the sequence (one trigger of the camera) that the image belongs to; empty where unknown")
BLOB = Column("blob", "string", "sha256 of the file in the store")
BYTES = Column("bytes", "int64", "size of that file", "bytes")
WIDTH = Column("width", "int64", "width as stored; 0 where unknown", "pixels")
HEIGHT = Column("height", "int64", "height as stored; 0 where unknown", "pixels")
REASON = Column("reason", "string", "why it was dropped")
BOX = (
    Column("ymin", "double", "upper edge of the box", "share of the height"),
    Column("xmin", "double", "left edge of the box", "share of the width"),
    Column("ymax", "double", "lower edge of the box", "share of the height"),
    Column("xmax", "double", "right edge of the box", "share of the width"),
)
"""In labels and disagreements the box is NaN where an annotation has none."""

EXPORT_IMAGES = Table(
    "images.parquet",
    "one image of an export",
    (
        IMAGE_ID,
        Column("file_name", "string", "the export's file name"),
        Column("path", "string", "path below the source's images"),
        Column("location", "string", "where the camera stood, as the export names it; empty where unknown"),
        TAKEN,
        SEQUENCE,
        WIDTH,
        HEIGHT,
    ),
)
EXPORT_ANNOTATIONS = Table(
    "annotations.parquet",
    "one annotation of an export",
    (
        ANNOTATION_ID,
        IMAGE_ID,
        Column("label", "string", "the label that a person gave"),
        Column("x", "double", "left edge of the box; NaN without a box", "pixels"),
        Column("y", "double", "upper edge of the box; NaN without a box", "pixels"),
        Column("w", "double", "width of the box; NaN without a box", "pixels"),
        Column("h", "double", "height of the box; NaN without a box", "pixels"),
        Column("confidence", "double", "the detector's confidence; NaN where the box was drawn by hand"),
        Column("reviewed", "bool", "whether a person validated the label"),
    ),
)
EXPORT_PROBLEMS = Table(
    "problems.parquet",
    "one record of an export that could not be used",
    (
        Column("problem", "string", "what is wrong"),
        Column("subject", "string", "which record"),
        Column("detail", "string", "what was found"),
    ),
)
EXPORT_LOCATIONS = Table(
    "locations.parquet",
    "one camera deployment of an export, where coordinates are known",
    (
        Column("deployment", "string", "the deployment's name in the export"),
        Column("location", "string", "the location that it is part of"),
        Column("lat", "double", "latitude; NaN where unknown", "degrees"),
        Column("lon", "double", "longitude; NaN where unknown", "degrees"),
    ),
)
DOWNLOADED_IMAGES = Table(
    "images.parquet",
    "one downloaded image",
    (IMAGE_ID, Column("path", "string", "path below the source's images"), BLOB, BYTES, WIDTH, HEIGHT),
)
MISSING_IMAGES = Table(
    "missing.parquet",
    "one image that could not be downloaded",
    (
        IMAGE_ID,
        Column("path", "string", "path below the source's images"),
        Column("reason", "string", "why it is missing"),
        Column("detail", "string", "what the host answered"),
    ),
)
LABELS = Table(
    "labels.parquet",
    "one annotation with a class",
    (
        SOURCE,
        IMAGE_ID,
        ANNOTATION_ID,
        CLASS_ID,
        Column("label", "string", "the label that a person gave"),
        *BOX,
        LOCATION,
        TAKEN,
        SEQUENCE,
        BLOB,
        BYTES,
        WIDTH,
        HEIGHT,
        Column("file_name", "string", "the export's file name"),
    ),
)
DROPPED_ANNOTATIONS = Table(
    "dropped.parquet",
    "one annotation without a class",
    (SOURCE, IMAGE_ID, ANNOTATION_ID, Column("label", "string", "the label that a person gave"), REASON),
)
_DETECTION = (
    SOURCE,
    IMAGE_ID,
    BLOB,
    Column("annotation_id", "string", "the annotation that the box came from; empty for the detector's"),
    Column("origin", "string", "annotation, detector or results"),
    Column("category", "string", "the detector's category: 1 animal, 2 person, 3 vehicle"),
    Column("confidence", "double", "the detector's confidence; 1 for a reviewed box"),
    *BOX,
)
DETECTIONS = Table("detections.parquet", "one box in an image", _DETECTION)
REPEAT_DETECTIONS = Table("repeat_detections.parquet", "one detector box that was set aside as a repeat detection", _DETECTION)
DETECTION_FAILURES = Table("detector_failures.parquet", "one image without boxes, and why", (SOURCE, IMAGE_ID, REASON))
DISAGREEMENTS = Table(
    "disagreements.parquet",
    "one box on which people and the detector disagree",
    (
        SOURCE,
        IMAGE_ID,
        ANNOTATION_ID,
        Column("kind", "string", "what differs"),
        Column("overlap", "double", "intersection over union"),
        Column("confidence", "double", "the detector's confidence"),
        *BOX,
    ),
)
IMAGES_WITH_PEOPLE = Table("images_with_people.parquet", "one image that shows a person", (SOURCE, IMAGE_ID))
CROPS = Table(
    "crops.parquet",
    "one crop of a labelled animal",
    (
        Column("crop_id", "string", "name of the crop"),
        SOURCE,
        IMAGE_ID,
        ANNOTATION_ID,
        CLASS_ID,
        LOCATION,
        TAKEN,
        SEQUENCE,
        *BOX,
        Column("origin", "string", "annotation, detector or results"),
        Column("confidence", "double", "the detector's confidence; 1 for a reviewed box"),
        Column("image", "string", "sha256 of the whole image in the store"),
        Column("image_bytes", "int64", "size of the whole image's file", "bytes"),
        BLOB,
        BYTES,
        Column("phash", "string", "perceptual hash of the image, 128 bits in hexadecimal"),
        Column("with_people", "bool", "whether the image shows a person or a vehicle"),
    ),
)
DROPPED_LABELS = Table("dropped.parquet", "one label without a crop", (SOURCE, IMAGE_ID, ANNOTATION_ID, REASON))
SPLITS = Table(
    "splits.parquet",
    "one crop in a split",
    (Column("crop_id", "string", "name of the crop"), Column("split", "string", "train, val or test")),
)
SPLIT_LOCATIONS = Table(
    "locations.parquet",
    "one location in a split",
    (LOCATION, Column("split", "string", "train, val or test"), Column("crops", "int64", "number of its crops")),
)
DROPPED_CROPS = Table("dropped.parquet", "one crop in no split", (Column("crop_id", "string", "name of the crop"), REASON))
TRAINING_HISTORY = Table(
    "history.parquet",
    "one epoch",
    (
        Column("epoch", "int64", "number of the epoch, from 1"),
        Column("train_loss", "double", "mean loss on train"),
        Column("val_loss", "double", "mean loss on val"),
        Column("val_macro_ap", "double", "mean average precision over classes on val"),
        Column("val_macro_f1", "double", "mean F1 over classes on val"),
        Column("lr", "double", "learning rate of the head at the end of the epoch"),
    ),
)
_PREDICTION = (
    Column("crop_id", "string", "name of the crop"),
    SOURCE,
    IMAGE_ID,
    LOCATION,
    CLASS_ID,
    Column("predicted", "string", "the most probable class"),
)
VAL_PREDICTIONS = Table(
    "val.parquet",
    "one calibrated prediction on val",
    (*_PREDICTION, Column("probability", "double", "calibrated probability of the predicted class")),
    class_columns="p_",
    class_type="double",
)
TEST_PREDICTIONS = Table(
    "predictions.parquet",
    "one prediction on the test set",
    (
        *_PREDICTION,
        Column("probability", "float", "calibrated probability of the predicted class"),
        Column("infrared", "bool", "whether the crop has no colour"),
    ),
    class_columns="p_",
    class_type="float",
)
TABLES = {
    "export": (EXPORT_IMAGES, EXPORT_ANNOTATIONS, EXPORT_PROBLEMS, EXPORT_LOCATIONS),
    "images": (DOWNLOADED_IMAGES, MISSING_IMAGES),
    "labels": (LABELS, DROPPED_ANNOTATIONS),
    "detections": (DETECTIONS, REPEAT_DETECTIONS, DETECTION_FAILURES, DISAGREEMENTS, IMAGES_WITH_PEOPLE),
    "crops": (CROPS, DROPPED_LABELS),
    "splits": (SPLITS, SPLIT_LOCATIONS, DROPPED_CROPS),
    "fold": (SPLITS,),
    "training": (TRAINING_HISTORY,),
    "calibration": (VAL_PREDICTIONS,),
    "evaluation": (TEST_PREDICTIONS,),
}
"""Step → the tables that it writes."""


def declared_table(step: str, file: str) -> Table | None:
    """The declaration of one of a step's tables; None where the step declares no such file."""
    return next((t for t in TABLES.get(step, ()) if t.file == file), None)
