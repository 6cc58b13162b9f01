"""All tables that pass between steps, with their columns, types and units. Columns are declared here and nowhere else.

``docs/data-contracts.md`` is made from this module (``make docs-reference``). Boxes are ``ymin, xmin, ymax, xmax``, relative to the
height and width of the image. Text is empty where a value is unknown.
"""

from __future__ import annotations

from animl_pipeline.core.tables import Column, Table

SOURCE = Column("source", "string", "name of the plan's source")
IMAGE_ID = Column("image_id", "string", "id of the image in its export")
ANNOTATION_ID = Column("annotation_id", "string", "id of the annotation in its export")
CLASS_ID = Column("class_id", "string", "class that the model learns")
LOCATION = Column("location", "string", "location of the camera, as <namespace>/<location>; empty where unknown")
TAKEN = Column("taken", "string", "when the image was taken, as the export writes it; empty where unknown")
SEQUENCE = Column("sequence", "string", "sequence (images of one trigger) that the image belongs to; empty where unknown")
BLOB = Column("blob", "string", "sha256 of the file in the store")
BYTES = Column("bytes", "int64", "size of that file", "bytes")
WIDTH = Column("width", "int64", "width of the image; 0 where unknown", "pixels")
HEIGHT = Column("height", "int64", "height of the image; 0 where unknown", "pixels")
ORIENTATION = Column("orientation", "int64", "EXIF orientation of the file, 1 to 8; 1 where it has none; boxes and pixels are as stored")
REASON = Column("reason", "string", "why it was dropped")
BOX = (
    Column("ymin", "double", "upper edge of the box", "0–1 of the height"),
    Column("xmin", "double", "left edge of the box", "0–1 of the width"),
    Column("ymax", "double", "lower edge of the box", "0–1 of the height"),
    Column("xmax", "double", "right edge of the box", "0–1 of the width"),
)
"""Box columns. In labels they are NaN where an annotation has no box; of dropped annotations, also where it is not reviewed."""

EXPORT_IMAGES = Table(
    "images.parquet",
    "one image of an export",
    (
        IMAGE_ID,
        Column("file_name", "string", "the export's file name"),
        Column("path", "string", "path below the source's images"),
        Column("location", "string", "location of the camera, as the export names it; empty where unknown"),
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
        Column("label", "string", "label, as the export has it"),
        Column("x", "double", "left edge of the box; NaN without a box", "pixels"),
        Column("y", "double", "upper edge of the box; NaN without a box", "pixels"),
        Column("w", "double", "width of the box; NaN without a box", "pixels"),
        Column("h", "double", "height of the box; NaN without a box", "pixels"),
        Column("confidence", "double", "confidence of the detector; NaN where a person drew the box", "0–1"),
        Column("reviewed", "bool", "whether a person validated the label"),
    ),
)
EXPORT_PROBLEMS = Table(
    "problems.parquet",
    "one record of an export that could not be used",
    (Column("problem", "string", "what is wrong"), Column("subject", "string", "which record"), Column("detail", "string", "what was found")),
)
EXPORT_LOCATIONS = Table(
    "locations.parquet",
    "one camera deployment of an export, where coordinates are known",
    (
        Column("deployment", "string", "name of the deployment in the export"),
        Column("location", "string", "location that it belongs to"),
        Column("lat", "double", "latitude; NaN where unknown", "degrees"),
        Column("lon", "double", "longitude; NaN where unknown", "degrees"),
    ),
)
DOWNLOADED_IMAGES = Table(
    "images.parquet",
    "one downloaded image",
    (IMAGE_ID, Column("path", "string", "path below the source's images"), BLOB, BYTES, WIDTH, HEIGHT, ORIENTATION),
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
        Column("label", "string", "label, as the export has it"),
        *BOX,
        LOCATION,
        TAKEN,
        SEQUENCE,
        BLOB,
        BYTES,
        WIDTH,
        HEIGHT,
        ORIENTATION,
        Column("file_name", "string", "the export's file name"),
    ),
)
DROPPED_ANNOTATIONS = Table(
    "dropped.parquet",
    "one annotation without a class",
    (SOURCE, IMAGE_ID, ANNOTATION_ID, Column("label", "string", "label, as the export has it"), REASON, *BOX),
)
TEST_IMAGES = Table(
    "test_images.parquet",
    "one image of a test location, or a later one of a known camera, that people reviewed completely",
    (
        SOURCE,
        IMAGE_ID,
        Column("path", "string", "path below the source's images"),
        Column("file_name", "string", "the export's file name"),
        LOCATION,
        TAKEN,
        WIDTH,
        HEIGHT,
        Column("sequence", "int64", "number of the sequence that the image belongs to, by location and time"),
        Column("weight", "double", "how many sequences this image's sequence stands for; 1 unless the location is sampled"),
        Column("later", "bool", "whether it is a later image of a location of train or val (`splits.test_after`), and not one of a test location"),
    ),
)
TEST_OBJECTS = Table(
    "test_objects.parquet",
    "one object that people labelled in such an image",
    (SOURCE, IMAGE_ID, ANNOTATION_ID, Column("truth", "string", "its class; its label where the plan has no class for it"), *BOX),
)
_DETECTION = (
    SOURCE,
    IMAGE_ID,
    BLOB,
    Column("annotation_id", "string", "id of the annotation that the box comes from; empty for a detector's box"),
    Column("origin", "string", "where the box comes from: annotation (people reviewed it) or detector (also for a results file)"),
    Column("category", "string", "category of the detector: 1 animal, 2 person, 3 vehicle"),
    Column("confidence", "double", "confidence of the detector; 1 for a reviewed box", "0–1"),
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
        Column(
            "kind",
            "string",
            "not_found: no detection overlaps the reviewed box; drawn_otherwise: the best one overlaps it less than half; not_reviewed: an animal "
            "was detected where people drew no box",
        ),
        Column("overlap", "double", "intersection over union with the best box of the other side", "0–1"),
        Column("confidence", "double", "confidence of the detection; NaN where there is none", "0–1"),
        *BOX,
    ),
)
IMAGES_WITH_PEOPLE = Table("images_with_people.parquet", "one image that shows a person", (SOURCE, IMAGE_ID))
TEST_DETECTIONS = Table(
    "test_detections.parquet",
    "one box of an animal that the detector found in an image of a test location, at the confidence of production",
    (
        SOURCE,
        IMAGE_ID,
        BLOB,
        Column("annotation_id", "string", "id of the reviewed box that it matches; empty for none"),
        Column("confidence", "double", "confidence of the detector", "0–1"),
        *BOX,
    ),
)
SEARCHED_TEST_IMAGES = Table(
    "searched_images.parquet", "one image of a test location in which the detector searched", (SOURCE, IMAGE_ID, BLOB, BYTES)
)
CROPS = Table(
    "crops.parquet",
    "one crop of a labelled animal",
    (
        Column("crop_id", "string", "id of the crop"),
        SOURCE,
        IMAGE_ID,
        ANNOTATION_ID,
        CLASS_ID,
        LOCATION,
        TAKEN,
        SEQUENCE,
        *BOX,
        Column("origin", "string", "where the box comes from: annotation (people reviewed it) or detector (also for a results file)"),
        Column("confidence", "double", "confidence of the detector; 1 for a reviewed box", "0–1"),
        Column("image", "string", "sha256 of the whole image in the store"),
        Column("image_bytes", "int64", "size of the whole image's file", "bytes"),
        BLOB,
        BYTES,
        Column("phash", "string", "perceptual hash of the image, 128 bits in hexadecimal; empty for images with little contrast"),
        Column("with_people", "bool", "whether the image shows a person or a vehicle"),
    ),
)
DROPPED_LABELS = Table("dropped.parquet", "one label without a crop", (SOURCE, IMAGE_ID, ANNOTATION_ID, REASON))
SPLITS = Table(
    "splits.parquet",
    "one crop in a split",
    (Column("crop_id", "string", "id of the crop"), Column("split", "string", "train, val, test or test_later; held_out in a fold of the audit")),
)
SPLIT_LOCATIONS = Table(
    "locations.parquet",
    "one location in a split",
    (
        LOCATION,
        Column("split", "string", "train, val or test; test_later beside them for later images of a location of train or val"),
        Column("crops", "int64", "how many crops it has"),
    ),
)
DROPPED_CROPS = Table("dropped.parquet", "one crop in no split", (Column("crop_id", "string", "id of the crop"), REASON))
LATE_IMAGES_LEFT_OUT = Table(
    "late_images_left_out.parquet",
    "one image of `splits.test_after` or later with crops, that no test shows, because it was learnt from or may show the same as such an image",
    (SOURCE, IMAGE_ID, REASON),
)
EMBEDDED_CROPS = Table("embedded_crops.parquet", "one crop of train or val with its embeddings", (Column("crop_id", "string", "id of the crop"),))
CROSS_VALIDATION = Table(
    "cross_validation.parquet",
    "one way to train, scored on the crops of the folds that did not train on them",
    (
        Column("recipe", "string", "head or fine_tune"),
        Column("regularisation", "double", "C of the head's logistic regression; NaN for fine_tune"),
        Column("log_loss", "double", "mean loss: of each class the mean over its crops, then the mean over classes"),
        Column("macro_ap", "double", "macro average precision: mean over classes", "0–1"),
        Column("macro_f1", "double", "macro F1: mean over classes", "0–1"),
        Column("chosen", "bool", "whether the model was trained in this way"),
    ),
)
OUT_OF_FOLD = Table(
    "out_of_fold.parquet",
    "one prediction of a fold's model, which did not train on the crop's location, before calibration",
    (Column("crop_id", "string", "id of the crop"), Column("fold", "int64", "number of the fold, from 0")),
    class_columns="p_",
    class_type="double",
)
TRAINING_HISTORY = Table(
    "history.parquet",
    "one epoch",
    (
        Column("epoch", "int64", "number of the epoch, from 1"),
        Column("train_loss", "double", "mean loss on train"),
        Column("val_loss", "double", "mean loss on val"),
        Column("val_macro_ap", "double", "macro average precision on val: mean over classes", "0–1"),
        Column("val_macro_f1", "double", "macro F1 on val: mean over classes", "0–1"),
        Column("lr", "double", "learning rate of the head after the epoch"),
    ),
)
TRAINED_IMAGES = Table(
    "trained_images.parquet",
    "one image that the model learnt from, also through the released model that it started from",
    (LOCATION, Column("image", "string", "first 16 characters of the image's sha256")),
)
_PREDICTION = (
    Column("crop_id", "string", "id of the crop"),
    SOURCE,
    IMAGE_ID,
    LOCATION,
    CLASS_ID,
    Column("predicted", "string", "the most probable class"),
)
VAL_PREDICTIONS = Table(
    "val.parquet",
    "one calibrated prediction on val; if the model learnt from val, too, one out-of-fold prediction on train or val",
    (*_PREDICTION, Column("probability", "double", "calibrated probability of that class", "0–1")),
    class_columns="p_",
    class_type="double",
)
TEST_PREDICTIONS = Table(
    "predictions.parquet",
    "one prediction on the test set",
    (
        *_PREDICTION,
        Column("probability", "float", "calibrated probability of that class", "0–1"),
        Column("infrared", "bool", "whether the crop has no colour, as in infrared images at night"),
    ),
    class_columns="p_",
    class_type="float",
)
SERVICE_LABELS = Table(
    "service_labels.parquet",
    "one label of an object in an image of Animl; an image without objects has one row without a label",
    (
        SOURCE,
        IMAGE_ID,
        Column("location", "string", "name of the camera's deployment; <camera>-default where it has none"),
        Column("taken_s", "double", "when the image was taken, since 1970; NaN where unknown", "seconds"),
        Column("added_s", "double", "when it was added to Animl, since 1970", "seconds"),
        Column("night", "bool", "whether it was taken between 18 and 6 o'clock by its camera's time zone"),
        Column("reviewed", "bool", "whether people have reviewed the whole image"),
        Column("tagged_random", "bool", "whether it has the tag of images that were drawn at random for review"),
        Column("object", "int64", "number of the object in its image, from 0; -1 for none"),
        Column("locked", "bool", "whether people have reviewed the object"),
        Column("number", "int64", "number of the label of its object, from 0, as Animl keeps them: a model's later and more probable labels first"),
        Column("label", "string", "name of the label; empty for none"),
        Column("model", "string", "id of the model that gave it; empty where a person did"),
        Column("version", "string", "version of the model, as Animl noted it; empty where unknown"),
        Column("confidence", "double", "the model's confidence; NaN where it has none", "0–1"),
        Column("labelled_s", "double", "when the label was given, since 1970; NaN where unknown", "seconds"),
        Column("validated", "string", "yes or no, as a person decided; empty where no person did"),
        Column("validated_s", "double", "when the person decided, since 1970; NaN where unknown", "seconds"),
    ),
)
SERVICE_METRICS = Table(
    "metrics.parquet",
    "one figure of the model in service",
    (
        Column("sample", "string", "reviewed: all images that people reviewed; random: those that were drawn at random for review"),
        Column("metric", "string", "name of the figure"),
        Column("by", "string", "what the images are divided by: all, month, version, location or light"),
        Column("group", "string", "which part of that; empty for all"),
        Column("class_id", "string", "class; empty for all classes together"),
        Column("value", "double", "the figure", "0–1"),
        Column("low", "double", "lower end of its 95 % interval over locations; NaN with fewer than two", "0–1"),
        Column("high", "double", "upper end", "0–1"),
        Column("count", "double", "what it is a share of: labels, objects, images or sequences"),
        Column("locations", "int64", "how many locations these are from"),
    ),
)
SEQUENTIAL_TESTS = Table(
    "sequential_tests.parquet",
    "one reviewed sequence in a sequential test",
    (
        Column("metric", "string", "recall or precision"),
        CLASS_ID,
        LOCATION,
        Column("version", "string", "version of the model that served when the sequence was added to Animl"),
        Column("taken_s", "double", "when its first image was taken, since 1970", "seconds"),
        Column("validated_s", "double", "when its last image was reviewed, since 1970", "seconds"),
        Column("right", "bool", "whether the model was right"),
        Column("statistic", "double", "the test's sum after this sequence; NaN in the reference"),
        Column("threshold", "double", "the sum from which the test alarms; NaN in the reference"),
        Column("alarm", "bool", "whether the test alarms here"),
    ),
)
CAMERA_ACTIVITY = Table(
    "cameras.parquet",
    "one camera location with its images in Animl",
    (
        Column("location", "string", "name of the camera's deployment"),
        Column("images", "int64", "images since the model is in service"),
        Column("last_taken_s", "double", "when the last was taken, since 1970", "seconds"),
        Column("recent_images", "int64", "images in the recent days"),
        Column("usual_images", "double", "images in as many days before, on average"),
        Column("night_share", "double", "share of the recent images that were taken at night; NaN without any", "0–1"),
        Column("problem", "string", "dark: no images for long; flood: far more than usual; empty for none"),
    ),
)
REPLAYED_LABELS = Table(
    "replayed_labels.parquet",
    "one label that the model in service or the new model gives an animal in an image of Animl",
    (
        SOURCE,
        IMAGE_ID,
        Column("image", "string", "sha256 of the image in the store"),
        Column("location", "string", "name of the camera's deployment; <camera>-default where it has none"),
        *BOX,
        CLASS_ID,
        Column("change", "string", "kept: both models give it; gained: only the new one; lost: only the one in service"),
        Column("judged", "string", "right or wrong by what people validated; empty where they did not decide"),
        Column("truth", "string", "what people saw: a class, or their own name for it; empty for no animal, or if they did not decide"),
        Column("probability", "double", "of the class by the new model", "0–1"),
        Column("people", "bool", "whether the image also shows a person or a vehicle; then it is not shown on pages"),
    ),
)
