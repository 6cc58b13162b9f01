"""Export from Animl's API: windows, filters, boxes, locations, the plan, and secrets."""

from __future__ import annotations

import json
import logging
import math
import runpy
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from animl_pipeline.config import AnimlExportConfig, SourceConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError, PlanError, SettingsError
from animl_pipeline.steps.export import count_validated, export_annotations
from animl_pipeline.storage.gc import GcRules, collect_garbage
from animl_pipeline.storage.store import open_store
from tests.support.animl_exports import TOKEN, exported, labels_in_animl, labels_of, problems, source
from tests.support.animl_images import DAY, AnimlImage, AnimlObject, camera_config, images_from_coco
from tests.support.animl_server import AnimlServer, serve_animl
from tests.support.paths import ROOT

# -- windows ---------------------------------------------------------------------------------------------------------


def test_images_without_a_validated_label_do_not_count_as_validated(site: AnimlServer, here: Settings) -> None:
    before = count_validated(source(), None, here)
    new = [AnimlObject(f"n{i}", "fox", validated=False, date=None) for i in range(50)]
    site.images += [AnimlImage(f"isle:{i + 10**6:032x}", objects=[o]) for i, o in enumerate(new)]
    assert count_validated(source(only_reviewed=False), None, here) == before
    assert count_validated(source(), None, here) == before


def test_windows_with_different_category_ids_give_the_right_labels(site: AnimlServer, here: Settings) -> None:
    artifact = exported(here)
    assert labels_of(here, artifact) == labels_in_animl(site)
    assert artifact.counts.kept == 200
    assert len(site.tasks) > 3
    assert max(t.output["count"] for t in site.tasks.values() if t.output) <= 50
    categories = {json.dumps(json.loads(t.body)["categories"]) for t in site.tasks.values()}
    assert len(categories) > 1


def test_answers_are_kept_byte_for_byte_beside_the_merged_export(site: AnimlServer, here: Settings) -> None:
    store, artifact = open_store(here), exported(here)
    windows = [name for name in store.files(artifact) if name.startswith("windows/")]
    assert sorted(store.path(artifact, name).read_bytes() for name in windows) == sorted(t.body for t in site.tasks.values())
    assert [w["file"] for w in json.loads(store.path(artifact, "windows.json").read_text())] == windows
    merged = json.loads(store.path(artifact, "export.json").read_text())
    assert [i["id"] for i in merged["images"]] == sorted(p.id for p in site.images)
    assert merged["categories"][0] == {"id": 0, "name": "empty"}
    assert {c["name"] for c in merged["categories"]} == {"empty", *site.labels}


def test_a_small_project_is_one_export(site: AnimlServer, here: Settings) -> None:
    exported(here, window_images=15_000)
    assert site.export_filters == [{"reviewed": True}]


def test_images_with_a_wrong_camera_clock_are_exported(site: AnimlServer, here: Settings) -> None:
    site.images[0].taken = datetime(1969, 12, 31, tzinfo=UTC)
    site.images[1].taken = datetime(2199, 1, 1, tzinfo=UTC)
    assert labels_of(here, exported(here)) == labels_in_animl(site)


def test_more_images_of_one_second_than_a_window_holds_are_one_window(site: AnimlServer, here: Settings) -> None:
    for p in site.images[:80]:
        p.taken = DAY
    assert labels_of(here, exported(here)) == labels_in_animl(site)


def test_images_without_a_time_are_counted(site: AnimlServer, here: Settings) -> None:
    for p in site.images[:3]:
        p.taken = None
    artifact = exported(here)
    assert artifact.counts.notes["images_without_capture_time"] == 1
    assert problems(here, artifact)[0][2].startswith("3 images have no capture time")


def test_a_count_that_times_out_is_done_in_halves(site: AnimlServer, here: Settings) -> None:
    site.count_seconds_per_image = 0.2
    assert labels_of(here, exported(here)) == labels_in_animl(site)
    site.count_seconds_per_image = 1e9
    with pytest.raises(ExportUnreachableError) as caught:
        exported(here, full_after_days=0)
    assert caught.value.code == "timed_out"


@pytest.mark.parametrize(
    ("animl", "count"),
    [
        ({"created_from": "2026-03-02", "created_to": "2026-03-03"}, 24),
        ({"created_from": "2026-03-01T20:00:00-08:00"}, 172),
        ({"cameras": ["cam1"]}, 67),
        ({"deployments": ["Ridge", "Dune"]}, 133),
        ({"labels": ["Rat"]}, 100),
        ({"only_reviewed": False}, 201),
    ],
)
def test_the_plans_filters_choose_images(site: AnimlServer, here: Settings, animl: dict[str, Any], count: int) -> None:
    site.images.append(AnimlImage("isle:unseen", camera="cam9", deployment="Mesa", taken=DAY, objects=[AnimlObject("u", "fox", validated=False)]))
    assert exported(here, **animl).counts.kept == count


# -- ids in a plan --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["[1001]", "[2020-10-15]", "[0101]", "[cam1, 1.5]", "[true]"])
def test_ids_without_quotes_that_yaml_changes_are_refused(ids: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_plan(plan_of(cameras=yaml.safe_load(ids)))
    assert caught.value.details["keys"] == ["sources.0.animl.cameras"]
    assert "in quotes" in str(caught.value)
    check_plan(plan_of(cameras=["1001"], labels=["cam1"]))


def plan_of(**animl: Any) -> dict[str, Any]:
    sources = [source().model_dump(mode="json", exclude={"animl"}) | {"animl": animl}]
    return {"model": "m", "sources": sources, "labels": {"classes": {"fox": ["fox"], "bird": ["bird"]}}}


# -- boxes, and who validated ----------------------------------------------------------------------------------------


def test_boxes_of_images_without_a_size_are_read_from_animl(site: AnimlServer, here: Settings) -> None:
    for p in site.images[::3]:
        p.size_known = False
    site.images[0].objects.append(AnimlObject("second", bbox=(16, 24, 32, 12)))
    store, artifact = open_store(here), exported(here)
    table = store.table(artifact, "annotations.parquet").merge(store.table(artifact, "images.parquet"), on="image_id").set_index("annotation_id")
    assert len(table) == 201
    assert table[["x", "y", "w", "h"]].notna().all(axis=None)
    assert table.loc["second", ["x", "y", "w", "h", "width", "height"]].tolist() == [0.25, 0.5, 0.5, 0.25, 1, 1]
    of_known_size = table.loc[site.images[1].objects[0].id]
    assert of_known_size[["x", "y", "w", "h", "width", "height"]].tolist() == [4, 4, 20, 20, 64, 48]
    assert artifact.counts.notes == {}
    questions = site.request_counts["images"]
    assert exported(here).cached
    assert site.request_counts["images"] == questions
    collect_garbage(store, GcRules(images=True), dry_run=False, now=time.time() + 100 * 86_400)
    assert exported(here).digest == artifact.digest
    assert site.request_counts["images"] == questions


def test_a_validated_label_without_a_user_is_reviewed(site: AnimlServer, here: Settings) -> None:
    for i, by in enumerate(["Not Reviewed", "", "somebody"]):
        site.images[i].objects[0].by = by
    site.images[3].objects[0].validated = False
    store, artifact = open_store(here), exported(here, only_reviewed=False)
    table = store.table(artifact, "annotations.parquet").set_index("annotation_id")["reviewed"]
    assert [bool(table[site.images[i].objects[0].id]) for i in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("project", ["mainland", "no-such"])
def test_a_project_without_access_is_a_settings_error(site: AnimlServer, here: Settings, project: str) -> None:
    plan = source().model_copy(update={"export": f"animl://{project}"})
    with pytest.raises(SettingsError, match=project):
        export_annotations(plan, open_store(here), here)


def test_a_project_without_fitting_images_is_an_error(site: AnimlServer, here: Settings) -> None:
    with pytest.raises(ExportError) as caught:
        exported(here, created_to="1980-01-01")
    assert caught.value.code == "no_images"


# -- locations -------------------------------------------------------------------------------------------------------


def test_a_renamed_deployment_is_one_location_with_the_oldest_name(site: AnimlServer, here: Settings) -> None:
    site.cameras = [
        camera_config("cam1", ("Ridge", "2025-05-01T00:00:00Z", 34.00002, -119.7), ("default", None, 34.3, -119.7)),
        camera_config("cam0", ("Cove", "2024-05-01T00:00:00Z", 34.0, -119.7)),
        camera_config("cam2", ("Dune", "2023-05-01T00:00:00Z", 34.1, -119.7)),
    ]
    artifact = exported(here)
    store = open_store(here)
    table = store.table(artifact, "locations.parquet")
    assert list(table.columns) == ["deployment", "location", "lat", "lon"]
    assert dict(zip(table["deployment"], table["location"], strict=True)) == {
        "Cove": "Cove",
        "Ridge": "Cove",
        "Dune": "Dune",
        "cam1-default": "cam1-default",
    }
    assert set(store.table(artifact, "images.parquet")["location"]) == {"Cove", "Dune"}
    apart = export_annotations(source().model_copy(update={"merge_locations_within_m": None}), store, here)
    assert set(store.table(apart, "images.parquet")["location"]) == {"Cove", "Dune", "Ridge"}
    assert math.isnan(store.table(apart, "locations.parquet")["lat"][0])


# -- the plan, and secrets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"export": "animl://"}, "expected animl://<project id>"),
        ({"export": "animl://user:secret@isle"}, "expected animl://<project id>"),
        ({"export": "a.json", "animl": {}}, "expected animl://<project id>, found 'a.json'"),
        ({"export": "animl://isle", "animl": {"window_images": 20_000}}, "sources.0.animl.window_images"),
        ({"export": "animl://isle", "animl": {"token": "x"}}, "'sources.0.animl.token' is not known"),
    ],
)
def test_a_wrong_animl_source_is_a_plan_error(changes: dict[str, Any], line: str) -> None:
    data = {"model": "m", "sources": [{"name": "a", "images": "i"} | changes], "labels": {"classes": {"fox": ["fox"], "bird": ["bird"]}}}
    with pytest.raises(PlanError) as caught:
        check_plan(data)
    assert line in str(caught.value)


def test_the_source_in_the_docs_has_every_key_and_default() -> None:
    text = (ROOT / "docs" / "animl.md").read_text(encoding="utf-8")
    [shown] = yaml.safe_load(text.split("```yaml")[1].split("```")[0])["sources"]
    whole = SourceConfig.model_validate(shown).animl
    assert whole is not None
    assert shown["animl"].keys() == AnimlExportConfig.model_fields.keys()
    assert whole.model_copy(update={"created_from": None, "created_to": None}) == AnimlExportConfig()


def test_store_logs_and_errors_hold_no_secret(site: AnimlServer, here: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        exported(here)
        site.fail_all_exports = True
        with pytest.raises(ExportError) as caught:
            exported(here, full_after_days=0)
    secrets = [TOKEN, *site.signatures]
    files = [p.read_bytes() for p in Path(here.store).rglob("*") if p.is_file()]
    assert len(files) > 10
    assert [s for s in secrets if any(s.encode() in data for data in files)] == []
    shown = f"{caplog.text} {caught.value} {source()!r} {here!r}"
    assert [s for s in secrets if s in shown] == []


# -- at the size of a real project -----------------------------------------------------------------------------------


def test_a_project_of_six_thousand_images_with_animls_exact_fields(here: Settings, tmp_path: Path) -> None:
    generator = runpy.run_path(str(ROOT / "benchmarks" / "exports.py"))
    generator["write_export"](tmp_path / "project.json", images=6000, locations=75)
    coco = json.loads((tmp_path / "project.json").read_text())
    with serve_animl(images_from_coco(coco)) as site:
        site.labels, site.stream_above = [c["name"] for c in coco["categories"][1:]], 1800
        artifact = exported(here.model_copy(update={"api_url": site.url}), window_images=2500, only_reviewed=False)
    names = {c["id"]: c["name"] for c in coco["categories"]}
    assert labels_of(here, artifact) == {a["id"]: names[a["category_id"]] for a in coco["annotations"]}
    images = open_store(here).table(artifact, "images.parquet")
    assert dict(zip(images["image_id"], images["location"], strict=True)) == {i["id"]: i["location"] for i in coco["images"]}
