"""`plan preview`: the table of classes, and what fetching would take, before any picture is fetched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.images import fetch_images, foresee_images
from animl_pipeline.storage.step_cache import Store
from tests.support.coco_export import Export
from tests.support.paths import ROOT


def preview(folder: Path, labels: dict[str, Any], images: str = "images") -> subprocess.CompletedProcess[str]:
    source = {"name": "isle", "export": "export.json", "images": images}
    (folder / "plan.yaml").write_text(yaml.safe_dump({"model": "small", "sources": [source], "labels": labels}))
    line = [
        sys.executable,
        "-m",
        "animl_pipeline.cli.main",
        "plan",
        "preview",
        str(folder / "plan.yaml"),
        "--store",
        str(folder / "s"),
        "--data",
        str(folder),
    ]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "100"}, timeout=120, check=False)


@pytest.fixture
def island(tmp_path: Path) -> Path:
    e = Export()
    for i in range(1200):
        e.image(f"p{i % 4}", data=b"%d" % i)
        e.annotation(e.images[-1]["id"], 1 + i % 3, [4, 4, 20, 20])
    (tmp_path / "export.json").write_bytes(e.json())
    (tmp_path / "images").mkdir()
    return tmp_path


def test_the_table_says_what_stays_and_what_would_travel_though_no_image_is_there(island: Path) -> None:
    done = preview(island, {"classes": {"fox": {"from": ["fox"], "max_per_location": 50}, "rat": ["rat"]}})
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["fox"][1:5] == ["200", "200", "4", "200"]
    assert rows["rat"][1:4] == ["400", "400", "4"]
    assert rows["all"][1:] == ["600", "600", "4"]
    assert rows["isle"][1:] == ["800", "0", "800", "560", "MB", "32", "s"]
    assert "names that stand nowhere in the plan: person 400" in done.stdout
    assert "700 kB each, which is assumed" in done.stdout
    assert "free" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_what_retrain_would_refuse_is_said_and_is_the_exit_status(island: Path) -> None:
    done = preview(island, {"classes": {"fox": ["fox"], "goat": ["goat"]}})
    assert done.returncode == 1
    assert "refused: the class 'goat' has no example" in done.stdout
    assert "Traceback" not in done.stderr


def test_too_few_locations_for_three_sides_are_refused_as_retrain_would(tmp_path: Path) -> None:
    e = Export()
    for i in range(12):
        e.annotation(e.image(f"p{i % 2}"), 1 + i % 2, [4, 4, 20, 20])
    e.write(tmp_path)
    done = preview(tmp_path, {"classes": {"fox": ["fox"], "rat": ["rat"]}}, images="images")
    assert done.returncode == 1
    assert "refused: train, val and test need at least 3 known places, found 2" in " ".join(done.stdout.split())


def test_a_folder_of_images_that_is_not_there_is_refused_as_retrain_would_with_the_table_all_the_same(island: Path) -> None:
    done = preview(island, {"classes": {"fox": ["fox"], "rat": ["rat"]}}, images="picturez")
    assert done.returncode == 1
    line = f"refused: source 'isle': expected a folder of pictures at {island / 'picturez'}, found none; mend sources.images in the plan"
    assert line in done.stdout
    assert "names that stand nowhere in the plan" in done.stdout
    assert "Traceback" not in done.stderr


def test_images_that_are_here_would_not_travel_again(store: Store, settings: Settings, tmp_path: Path) -> None:
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
    assert foresee_images(source, export, ("fox",), store) == (4, 0, 0, frozenset())
    fetch_images(source, export, ("fox",), store, settings)
    assert foresee_images(source, export, ("fox",), store) == (4, 3, bytes_here, frozenset())
    limited = source.model_copy(update={"max_images": 2})
    assert len(foresee_images(limited, export, ("fox",), store).over_limit) == 2
