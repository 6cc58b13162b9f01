"""Boxes meet the pixels that they are of, whatever the EXIF orientation and the frame that a tool or an export works in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from animl_pipeline.config import CropsConfig, DetectionsConfig, LabelsConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.box_type import Frame
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.model_card import ModelInput
from animl_pipeline.core.table_schemas import CROPS, DOWNLOADED_IMAGES
from animl_pipeline.steps.crops import extract_crops
from animl_pipeline.steps.detections import detect_animals
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.images.wanted_images_and_estimate import index_name
from animl_pipeline.steps.labels import SourceArtifacts, resolve_labels, wanted_labels
from animl_pipeline.storage.store import Store
from tests.support.coco_export import Export
from tests.support.turned_images import DiscImage, disc_image

WIDTH, HEIGHT = 64, 48
LABEL_CONFIG = LabelsConfig.model_validate({"classes": {"fox": ["fox"], "rat": ["rat"]}})
SHOWN_CORNER: dict[int, Callable[[float, float], tuple[float, float]]] = {
    1: lambda x, y: (x, y),
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}
"""EXIF orientation → where a point of the image as stored is in the image as shown."""


def as_shown(image: DiscImage, orientation: int) -> list[float]:
    """The disc's box [x, y, w, h], relative to the image as shown."""
    ymin, xmin, ymax, xmax = image.box
    (x1, y1), (x2, y2) = SHOWN_CORNER[orientation](xmin, ymin), SHOWN_CORNER[orientation](xmax, ymax)
    return [min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)]


def shown_size(orientation: int) -> tuple[int, int]:
    return (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)


def label(e: Export, store: Store, settings: Settings, folder: Path, **fields: Any) -> Artifact:
    """The step labels of an export whose images are all wanted."""
    e.write(folder)
    source = SourceConfig.model_validate({"name": "isle", "export": str(folder / "export.json"), "images": str(folder / "images")} | fields)
    export = export_annotations(source, store, settings)
    images = download_images(source, export, wanted_labels(LABEL_CONFIG, "isle", settings), store, settings)
    return resolve_labels([SourceArtifacts(source, export, images)], LABEL_CONFIG, store, settings)


def red_shares(labels: Artifact, store: Store, settings: Settings, config: DetectionsConfig) -> list[float]:
    """How much of each crop is red, after the steps detections and crops."""
    detections = detect_animals(labels, config, store, settings)
    crops = extract_crops(labels, detections, CropsConfig(min_pixels=1), ModelInput(size=32), store, settings)
    pixels = [np.asarray(open_image(store.blob(blob)), int) for blob in store.table(crops, CROPS)["blob"]]
    return [float(((p[..., 0] > 150) & (p[..., 1] < 90)).mean()) for p in pixels]


ORIENTATIONS = range(1, 9)


def discs() -> list[tuple[int, DiscImage]]:
    """An image in each orientation, with a disc somewhere in it."""
    random = np.random.default_rng(3)
    return [
        (o, disc_image(o, WIDTH, HEIGHT, int(random.integers(12, WIDTH - 12)), int(random.integers(12, HEIGHT - 12)), seed=o)) for o in ORIENTATIONS
    ]


def reviewed(images: list[tuple[int, DiscImage]], turned: bool) -> Export:
    """An export with a box around each disc, in pixels of the image as shown or as stored, and that image's size."""
    e = Export()
    for i, (orientation, image) in enumerate(images):
        frame = orientation if turned else 1
        (left, top, w, h), (width, height) = as_shown(image, frame), shown_size(frame)
        box = [left * width, top * height, w * width, h * height]
        e.annotation(e.image("cove", data=image.data, width=width, height=height), 1 + i % 2, box)
    return e


def found(
    folder: Path, images: list[tuple[int, DiscImage]], turned: bool, info: dict[str, Any], sizes: bool = False
) -> tuple[Export, DetectionsConfig]:
    """An export without boxes, and a results file with a box around each disc."""
    e, files = Export(), []
    for i, (orientation, image) in enumerate(images):
        frame = orientation if turned else 1
        e.annotation(e.image("cove", data=image.data), 1 + i % 2)
        width, height = shown_size(frame)
        size = {"width": width, "height": height} if sizes else {}
        detections = [{"category": "1", "conf": 0.9, "bbox": as_shown(image, frame)}]
        files.append({"file": e.images[-1]["file_name"], "detections": detections} | size)
    (folder / "md.json").write_text(json.dumps({"info": info, "detection_categories": {"1": "animal"}, "images": files}))
    return e, DetectionsConfig(source="results", results=str(folder / "md.json"))


@pytest.mark.parametrize("turned", [False, True])
def test_reviewed_boxes_are_of_the_same_discs_in_every_orientation_and_frame(store: Store, settings: Settings, tmp_path: Path, turned: bool) -> None:
    labels = label(reviewed(discs(), turned), store, settings, tmp_path)
    shares = red_shares(labels, store, settings, DetectionsConfig(source="annotations"))
    assert len(shares) == len(ORIENTATIONS)
    assert min(shares) > 0.6
    assert labels.counts.notes.get("boxes_turned", 0) == (7 if turned else 0)


@pytest.mark.parametrize(
    ("turned", "info", "sizes", "frame"),
    [(True, {}, True, "auto"), (False, {}, True, "auto"), (True, {}, False, "shown"), (False, {"image_orientation": "as stored"}, False, "auto")],
    ids=["shown-sizes", "stored-sizes", "shown-plan", "stored-own-file"],
)
def test_boxes_of_a_results_file_are_of_the_same_discs_in_every_orientation_and_frame(
    store: Store, settings: Settings, tmp_path: Path, turned: bool, info: dict[str, Any], sizes: bool, frame: Frame
) -> None:
    e, config = found(tmp_path, discs(), turned, info, sizes)
    shares = red_shares(label(e, store, settings, tmp_path), store, settings, config.model_copy(update={"results_frame": frame}))
    assert len(shares) == len(ORIENTATIONS)
    assert min(shares) > 0.6


def test_results_without_sizes_are_taken_as_megadetector_makes_them(store: Store, settings: Settings, tmp_path: Path) -> None:
    rotated = [(o, image) for o, image in discs() if o in {1, 3, 6, 8}]
    e, config = found(tmp_path, rotated, True, {"detector": "md_v5a.0.0.pt"})
    labels = label(e, store, settings, tmp_path)
    assert min(red_shares(labels, store, settings, config)) > 0.6
    notes = detect_animals(labels, config, store, settings).counts.notes
    assert (notes["images_turned"], notes["frame_assumed"]) == (3, 3)


def test_boxes_of_an_image_of_another_shape_are_dropped_and_counted(store: Store, settings: Settings, tmp_path: Path) -> None:
    images = discs()[:3]
    e = reviewed(images, False)
    e.images[0] |= {"width": 100, "height": 48}
    labels = label(e, store, settings, tmp_path / "a")
    assert labels.counts.dropped == {"frame_mismatch": 1}
    e, config = found(tmp_path, images, False, {}, sizes=True)
    content = json.loads((tmp_path / "md.json").read_text())
    content["images"][1] |= {"width": HEIGHT, "height": WIDTH}
    (tmp_path / "md.json").write_text(json.dumps(content))
    detections = detect_animals(label(e, store, settings, tmp_path / "b"), config, store, settings)
    assert detections.counts.dropped == {"frame_mismatch": 1}


def test_images_downloaded_before_orientations_were_recorded_are_not_downloaded_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = reviewed(discs()[:6], True)
    source = SourceConfig(name="isle", kind="cct", export=str(tmp_path / "export.json"), images=str(tmp_path / "images"))
    e.write(tmp_path)
    export = export_annotations(source, store, settings)
    first = download_images(source, export, ["fox"], store, settings)
    name = index_name(source, settings)
    older = {path: {k: v for k, v in record.items() if k != "orientation"} for path, record in store.read_index(name).items()}
    store.add_to_index(name, older)
    assert not any("orientation" in record for record in store.read_index(name).values())
    for file in (tmp_path / "images").rglob("*.jpg"):
        file.unlink()
    again = download_images(source, export, ["fox", "rat"], store, settings)
    table = store.table(again, DOWNLOADED_IMAGES).set_index("image_id")["orientation"]
    assert dict(table) == dict(store.table(first, DOWNLOADED_IMAGES).set_index("image_id")["orientation"])
    assert sorted(table) == [1, 3, 5]
