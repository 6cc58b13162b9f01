"""Limits of classes act before images are downloaded, and change nothing of what the step labels keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from animl_pipeline.config import LabelsConfig, SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images
from animl_pipeline.steps.labels import SourceArtifacts, limits_of_classes, resolve_labels, wanted_labels
from animl_pipeline.storage.store import Store
from tests.support.coco_export import Export

PER_LOCATION = {"fox": {"from": ["fox"], "max_per_location": 5}, "rat": ["rat"]}
IN_ALL = {"fox": {"from": ["fox"], "max_count": 10}, "rat": ["rat"]}
BOTH = {"fox": {"from": ["fox"], "max_count": 7, "max_per_location": 1}, "rat": {"from": ["rat"], "max_per_location": 2}}


def island(images: int = 60) -> Export:
    """Foxes at six locations; a rat beside every tenth fox; a few rats alone."""
    e = Export()
    for i in range(images):
        image = e.image(f"p{i % 6}")
        e.annotation(image, 1, [4, 4, 20, 20])
        if i % 10 == 0:
            e.annotation(image, 2, [30, 4, 20, 20])
    for _ in range(3):
        e.annotation(e.image("p0"), 2, [4, 4, 20, 20])
    return e


def run(
    e: Export, classes: dict[str, Any], store: Store, settings: Settings, folder: Path, *, limited: bool = True, **fields: Any
) -> tuple[Artifact, Artifact]:
    """The steps images and labels, with limits before the download or without."""
    e.write(folder)
    config = LabelsConfig.model_validate({"classes": classes})
    source = SourceConfig.model_validate({"name": "isle", "export": str(folder / "export.json"), "images": str(folder / "images")} | fields)
    export = export_annotations(source, store, settings)
    limits = limits_of_classes(source, export, config, store, settings) if limited else None
    images = download_images(source, export, wanted_labels(config, "isle", settings), store, settings, limits=limits)
    return images, resolve_labels([SourceArtifacts(source, export, images)], config, store, settings)


@pytest.mark.parametrize(("classes", "downloaded"), [(PER_LOCATION, 36 + 9), (IN_ALL, 12 + 9), (BOTH, 8 + 7)], ids=["per location", "in all", "both"])
def test_only_images_that_a_class_can_use_are_downloaded(
    store: Store, settings: Settings, tmp_path: Path, classes: dict[str, Any], downloaded: int
) -> None:
    images, labels = run(island(), classes, store, settings, tmp_path)
    all_images, expected = run(island(), classes, store, settings, tmp_path, limited=False)
    assert all_images.counts.kept == 63
    assert images.counts.kept <= downloaded
    assert images.counts.dropped == {"over_class_limit": 63 - images.counts.kept}
    assert store.table(labels, "labels.parquet").equals(store.table(expected, "labels.parquet"))
    assert labels.counts.dropped == expected.counts.dropped


def test_images_in_reserve_take_the_place_of_missing_ones(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island()
    _, labels = run(e, IN_ALL, store, settings, tmp_path / "a")
    kept = store.table(labels, "labels.parquet").query("class_id == 'fox'")
    for name in kept["file_name"].iloc[:2]:
        del e.files[name]
    images, again = run(e, IN_ALL, store, settings, tmp_path / "b")
    assert images.counts.dropped["missing"] == 2
    assert again.counts.notes["fox"] == 10
    for name in kept["file_name"].iloc[2:5]:  # more than the reserve
        del e.files[name]
    _, fewer = run(e, IN_ALL, store, settings, tmp_path / "c")
    assert fewer.counts.notes["fox"] == 7


def test_what_was_downloaded_earlier_stays_wanted_where_its_location_does_not_grow(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = island()
    first, _ = run(e, PER_LOCATION, store, settings, tmp_path / "a")
    for _ in range(20):
        e.annotation(e.image("p9"), 1, [4, 4, 20, 20])
    grown, _ = run(e, PER_LOCATION, store, settings, tmp_path / "b")
    before, after = (set(store.table(a, "images.parquet")["image_id"]) for a in (first, grown))
    assert before < after
    assert len(after - before) == 6


def test_without_limits_of_classes_the_step_images_has_the_key_that_it_had(store: Store, settings: Settings, tmp_path: Path) -> None:
    classes = {"fox": ["fox"], "rat": ["rat"]}
    with_limits, _ = run(island(6), classes, store, settings, tmp_path)
    without, _ = run(island(6), classes, store, settings, tmp_path, limited=False)
    assert with_limits.key == without.key
    assert with_limits.counts.kept == 9


def test_a_source_that_may_share_locations_is_not_cut_at_max_count(store: Store, settings: Settings, tmp_path: Path) -> None:
    alone, _ = run(island(), BOTH, store, settings, tmp_path)
    shared, _ = run(island(), BOTH, store, settings, tmp_path, location_namespace="isles")
    assert shared.counts.kept >= alone.counts.kept
