"""Which tables each step writes."""

from __future__ import annotations

from animl_pipeline.core.table_schemas import (
    CAMERA_ACTIVITY,
    CROPS,
    CROSS_VALIDATION,
    DETECTION_FAILURES,
    DETECTIONS,
    DISAGREEMENTS,
    DOWNLOADED_IMAGES,
    DROPPED_ANNOTATIONS,
    DROPPED_CROPS,
    DROPPED_LABELS,
    EMBEDDED_CROPS,
    EXPORT_ANNOTATIONS,
    EXPORT_IMAGES,
    EXPORT_LOCATIONS,
    EXPORT_PROBLEMS,
    IMAGES_WITH_PEOPLE,
    LABELS,
    LATE_IMAGES_LEFT_OUT,
    MISSING_IMAGES,
    OUT_OF_FOLD,
    REPEAT_DETECTIONS,
    REPLAYED_LABELS,
    SEARCHED_TEST_IMAGES,
    SEQUENTIAL_TESTS,
    SERVICE_LABELS,
    SERVICE_METRICS,
    SPLIT_LOCATIONS,
    SPLITS,
    TEST_DETECTIONS,
    TEST_IMAGES,
    TEST_OBJECTS,
    TEST_PREDICTIONS,
    TRAINED_IMAGES,
    TRAINING_HISTORY,
    VAL_PREDICTIONS,
)
from animl_pipeline.core.tables import Table

TABLES = {
    "export": (EXPORT_IMAGES, EXPORT_ANNOTATIONS, EXPORT_PROBLEMS, EXPORT_LOCATIONS),
    "images": (DOWNLOADED_IMAGES, MISSING_IMAGES),
    "labels": (LABELS, DROPPED_ANNOTATIONS),
    "test_images": (TEST_IMAGES, TEST_OBJECTS),
    "test_downloads": (DOWNLOADED_IMAGES, MISSING_IMAGES),
    "test_detections": (TEST_DETECTIONS, SEARCHED_TEST_IMAGES),
    "detections": (DETECTIONS, REPEAT_DETECTIONS, DETECTION_FAILURES, DISAGREEMENTS, IMAGES_WITH_PEOPLE),
    "crops": (CROPS, DROPPED_LABELS),
    "splits": (SPLITS, SPLIT_LOCATIONS, DROPPED_CROPS, LATE_IMAGES_LEFT_OUT),
    "fold": (SPLITS,),
    "embeddings": (EMBEDDED_CROPS,),
    "training": (TRAINING_HISTORY, TRAINED_IMAGES, CROSS_VALIDATION, OUT_OF_FOLD),
    "calibration": (VAL_PREDICTIONS,),
    "evaluation": (TEST_PREDICTIONS,),
    "monitor": (SERVICE_METRICS, SEQUENTIAL_TESTS, CAMERA_ACTIVITY),
    "replay": (REPLAYED_LABELS,),
    "service_labels": (SERVICE_LABELS,),
}
"""Step → the tables that it writes. SERVICE_LABELS belongs to no step: it grows with each run of `monitor`, as a blob."""


def declared_table(step: str, file: str) -> Table | None:
    """The declaration of one of a step's tables; None if the step declares no such file."""
    return next((t for t in TABLES.get(step, ()) if t.file == file), None)
