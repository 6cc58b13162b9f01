"""The step `test_detections`: the detector's boxes in the images on which the model is scored as in production.

The detector searches at the confidence of the project's rule in Animl, which is lower than that for training crops, and in all images,
also those whose boxes people drew.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from animl_pipeline.config import DetectionsConfig, ProductionConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.box_type import BoxTuple
from animl_pipeline.core.errors import redact_url
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import DOWNLOADED_IMAGES, SEARCHED_TEST_IMAGES, TEST_DETECTIONS, TEST_IMAGES, TEST_OBJECTS
from animl_pipeline.core.tables import write_table
from animl_pipeline.core.write_megadetector_results import ANIMAL
from animl_pipeline.steps.detections.box_overlap import match_animals
from animl_pipeline.steps.detections.choose_detector import choose_detector
from animl_pipeline.steps.detections.detector import Detection
from animl_pipeline.steps.detections.labelled_images import ImageKey, LabelledImage
from animl_pipeline.steps.detections.match_results_by_path import match_results
from animl_pipeline.steps.detections.read_results_file import parse_results, read_results_file
from animl_pipeline.steps.detections.run_detector import run_detector
from animl_pipeline.storage.store import BlobColumn, StepOutput, Store, Workspace

STEP = Step(
    "test_detections",
    version=2,
    sections=("detections", "production"),
    reads=(TEST_IMAGES, TEST_OBJECTS, DOWNLOADED_IMAGES),
    writes=(TEST_DETECTIONS, SEARCHED_TEST_IMAGES),
    libraries=("pillow", "onnxruntime", "torch", "ultralytics"),
)


def detect_in_test_images(
    test_images: Artifact,
    downloads: Mapping[str, Artifact],
    config: DetectionsConfig,
    production: ProductionConfig,
    store: Store,
    settings: Settings,
    image_folders: Mapping[str, str] = MappingProxyType({}),
) -> Artifact:
    """Write TEST_DETECTIONS, the animals that the detector found, and SEARCHED_TEST_IMAGES, the images in which it searched.

    ``downloads``: source → its step test_downloads. ``image_folders``: source → its ``images`` in the plan, by which the files of a results
    file are recognised.

    Raises:
        WeightsError: the detector's weights cannot be loaded.
        DetectionsError: the detector does not fit the plan, it fails, or the results file cannot be read.
        DetectorUnreachableError: the detector's endpoint does not answer now.
    """
    config = config.model_copy(update={"confidence": production.detector_confidence, "images_with_people": "keep"})
    results_file = read_results_file(config.results, settings) if config.results else None
    detector = None if results_file is not None else choose_detector(config, settings)
    key: dict[str, Any] = {"confidence": production.detector_confidence, "detector": detector.identity() if detector else None}
    image_folders = {source: redact_url(folder) for source, folder in image_folders.items()}
    if results_file is not None:
        key |= config.model_dump(include={"results_folders", "results_frame"}) | {"image_folders": image_folders}
    digests = {"results": hashlib.sha256(results_file).hexdigest()} if results_file is not None else None

    def build(space: Workspace) -> StepOutput:
        images = read_downloaded_test_images(test_images, downloads, store)
        if detector is None:
            results = parse_results(results_file or b"", str(config.results), config.confidence)
            matched, _ = match_results(as_labelled_images(images), results, config, image_folders)
            found = list(matched.values())
        else:
            by_blob = run_detector(sorted(set(images["blob"])), detector, config, store, settings)
            found = [by_blob[blob] for blob in images["blob"]]
        return _write(space, images, found, reviewed_boxes_of_test_images(test_images, store))

    return store.make(STEP, inputs={"test_images": test_images} | dict(downloads), digests=digests, config=key, build=build)


def read_downloaded_test_images(test_images: Artifact, downloads: Mapping[str, Artifact], store: Store) -> pd.DataFrame:
    """The test images that were downloaded, with blob and bytes, sorted by source and image id."""
    files = [
        store.table(a, DOWNLOADED_IMAGES, ["image_id", "blob", "bytes", "width", "height", "orientation"]).assign(source=source)
        for source, a in downloads.items()
    ]
    images = store.table(test_images, TEST_IMAGES, ["source", "image_id", "file_name"])
    return images.merge(pd.concat(files), on=["source", "image_id"]).sort_values(["source", "image_id"], ignore_index=True)


def as_labelled_images(images: pd.DataFrame) -> dict[ImageKey, LabelledImage]:
    """The images with what a results file is matched by, in order."""
    columns = images[["source", "image_id", "blob", "file_name", "width", "height", "orientation"]]
    return {
        (source, image_id): LabelledImage(blob, file, "", "", width, height, orientation, {})
        for source, image_id, blob, file, width, height, orientation in columns.itertuples(index=False, name=None)
    }


def reviewed_boxes_of_test_images(test_images: Artifact, store: Store) -> dict[ImageKey, dict[str, BoxTuple]]:
    """Image → annotation id → box that a person reviewed."""
    table = store.table(test_images, TEST_OBJECTS)
    boxes: dict[ImageKey, dict[str, BoxTuple]] = {}
    rows = table.loc[table["ymin"].notna(), ["source", "image_id", "annotation_id", "ymin", "xmin", "ymax", "xmax"]]
    for source, image_id, annotation_id, ymin, xmin, ymax, xmax in rows.itertuples(index=False, name=None):
        boxes.setdefault((source, image_id), {}).setdefault(annotation_id, (ymin, xmin, ymax, xmax))
    return boxes


def _write(
    space: Workspace, images: pd.DataFrame, found: list[list[Detection] | str], reviewed: Mapping[ImageKey, dict[str, BoxTuple]]
) -> StepOutput:
    rows = []
    for source, image_id, blob, detections in zip(images["source"], images["image_id"], images["blob"], found, strict=True):
        if isinstance(detections, str):
            continue
        matched = match_animals(reviewed.get((source, image_id), {}), detections)
        rows += [
            (source, image_id, blob, matched.get(i, ""), d.confidence, d.ymin, d.xmin, d.ymax, d.xmax)
            for i, d in enumerate(detections)
            if d.category == ANIMAL
        ]
    failed = Counter(detections for detections in found if isinstance(detections, str))
    searched = images[np.array([not isinstance(detections, str) for detections in found], bool)]  # pandas takes [] as no columns
    write_table(space.out, TEST_DETECTIONS, pd.DataFrame(rows, columns=TEST_DETECTIONS.names()))
    write_table(space.out, SEARCHED_TEST_IMAGES, searched[SEARCHED_TEST_IMAGES.names()])
    counts = Counts(kept=len(searched), dropped=dict(failed), notes={"boxes": len(rows)} if rows else {}, unit="images")
    return StepOutput(counts, blobs=(BlobColumn(file=SEARCHED_TEST_IMAGES.file),))
