"""`animl-pipeline plan preview`: the classes, and what downloading the images would take, before any download."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import download_images, estimate_download
from animl_pipeline.storage.store import Store
from tests.support.coco_export import CATEGORIES, Export
from tests.support.command_line import run_command


def preview(folder: Path, labels: dict[str, Any], images: str = "images") -> subprocess.CompletedProcess[str]:
    source = {"name": "isle", "export": "export.json", "images": images}
    (folder / "plan.yaml").write_text(yaml.safe_dump({"model": "small", "sources": [source], "labels": labels}))
    return run_command("plan", "preview", folder / "plan.yaml", "--store", folder / "s", "--data", folder, COLUMNS="100")


@pytest.fixture
def island(tmp_path: Path) -> Path:
    e = Export()
    for i in range(1200):
        e.image(f"p{i % 4}", data=b"%d" % i)
        e.annotation(e.images[-1]["id"], 1 + i % 3, [4, 4, 20, 20])
    (tmp_path / "export.json").write_bytes(e.json())
    (tmp_path / "images").mkdir()
    return tmp_path


def test_the_tables_show_classes_and_downloads_although_no_image_exists(island: Path) -> None:
    done = preview(island, {"classes": {"fox": {"from": ["fox"], "max_per_location": 50}, "rat": ["rat"]}})
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["fox"][1:5] == ["200", "200", "4", "200"]
    assert rows["rat"][1:4] == ["400", "400", "4"]
    assert rows["total"][1:] == ["600", "600", "4"]
    assert rows["isle"][1:] == ["640", "0", "640", "448", "MB", "26", "s"]  # of each fox limit of 50, ten more in reserve
    assert "160 more images have a label of the plan" in " ".join(done.stdout.split())
    assert "person 400" in done.stdout
    assert "700 kB each" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("next: ")) <= 100


def test_the_preview_counts_ambiguous_labels_unlisted_names_and_repeated_sequence_ids(tmp_path: Path) -> None:
    e = Export()
    e.categories = [*CATEGORIES, {"id": 4, "name": "rabbit"}]
    for i in range(12):
        image = e.image(f"p{i % 4}", data=b"%d" % i, seq_id=i // 4)
        e.annotation(image, 1 + i % 2)
        if i < 3:
            e.annotation(image, 4)
    (tmp_path / "export.json").write_bytes(e.json())
    (tmp_path / "images").mkdir()
    shown = preview(tmp_path, {"classes": {"fox": ["fox"], "rat": ["rat"]}}).stdout
    assert "3 ambiguous label" in shown
    assert "rabbit 3" in shown
    assert [line.split()[0] for line in shown.splitlines() if "sequence ids" in line] == ["3"]


def test_a_class_without_annotations_is_refused_with_exit_code_1(island: Path) -> None:
    done = preview(island, {"classes": {"fox": ["fox"], "goat": ["goat"]}})
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("refused: ") and "'goat'" in line]
    assert "Traceback" not in done.stderr


def test_fewer_than_three_locations_are_refused(tmp_path: Path) -> None:
    e = Export()
    for i in range(12):
        e.annotation(e.image(f"p{i % 2}"), 1 + i % 2, [4, 4, 20, 20])
    e.write(tmp_path)
    done = preview(tmp_path, {"classes": {"fox": ["fox"], "rat": ["rat"]}}, images="images")
    assert done.returncode == 1
    assert "refused: train, val and test need at least 3 known locations, found 2" in " ".join(done.stdout.split())


def test_a_missing_folder_of_images_is_refused_after_the_tables(island: Path) -> None:
    done = preview(island, {"classes": {"fox": ["fox"], "rat": ["rat"]}}, images="imagez")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("refused: ") and str(island / "imagez") in line]
    assert "person 400" in done.stdout
    assert "Traceback" not in done.stderr


def test_images_in_the_store_would_not_be_downloaded_again(store: Store, settings: Settings, tmp_path: Path) -> None:
    e = Export()
    for i in range(4):
        e.annotation(e.image(f"p{i}"), 1)
    lost = e.images[0]["file_name"]
    bytes_here = sum(len(data) for name, data in e.files.items() if name != lost)
    del e.files[lost]
    e.annotation(e.image(), 3)
    e.write(tmp_path)
    source = SourceConfig.model_validate({"name": "isle", "export": str(tmp_path / "export.json"), "images": str(tmp_path / "images")})
    export = export_annotations(source, store, settings)
    assert estimate_download(source, export, ("fox",), store, settings) == (4, 0, 0, frozenset(), 0)
    download_images(source, export, ("fox",), store, settings)
    assert estimate_download(source, export, ("fox",), store, settings) == (4, 3, bytes_here, frozenset(), 0)
    limited = source.model_copy(update={"max_images": 2})
    assert len(estimate_download(limited, export, ("fox",), store, settings).over_limit) == 2
