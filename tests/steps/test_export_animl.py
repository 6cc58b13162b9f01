"""Export from Animl's API: windows, faults of Animl, resuming, incremental exports, merging, and secrets."""

from __future__ import annotations

import json
import logging
import math
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from animl_pipeline.config import AnimlExportConfig, SourceConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ExportError, ExportUnreachableError, PlanError, SettingsError
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.storage.gc import GcRules, collect_garbage
from animl_pipeline.storage.store import open_store
from tests.support.animl_server import DAY, AnimlImage, AnimlObject, AnimlServer, camera_config, images_from_coco, make_images, serve_animl
from tests.support.paths import ROOT

NOT_WINDOWS = len(("export.json", "images.parquet", "annotations.parquet", "locations.parquet", "problems.parquet", "windows.json"))
TOKEN = "token-of-a-service-user"  # noqa: S105 - opens the test's own server


@pytest.fixture
def site() -> Iterator[AnimlServer]:
    with serve_animl(make_images(200)) as site:
        yield site


@pytest.fixture
def here(site: AnimlServer, tmp_path: Path) -> Settings:
    return Settings(store=str(tmp_path / "store"), data=tmp_path, api_url=site.url, id_token=SecretStr(TOKEN), poll_s=0.01, timeout_s=5)


def source(**animl: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": "isle", "export": "animl://isle", "images": "images", "animl": {"window_images": 50} | animl})


def exported(here: Settings, **animl: Any) -> Artifact:
    return export_annotations(source(**animl), open_store(here), here)


def labels_of(here: Settings, artifact: Artifact) -> dict[str, str]:
    """Annotation id → label, as the tables have it."""
    table = open_store(here).table(artifact, "annotations.parquet")
    return dict(zip(table["annotation_id"], table["label"], strict=True))


def labels_in_animl(site: AnimlServer) -> dict[str, str]:
    """Object id → label, as Animl has it."""
    return {t.id: t.name for p in site.images if p.reviewed for t in p.objects}


def problems(here: Settings, artifact: Artifact) -> list[tuple[str, str, str]]:
    return list(open_store(here).table(artifact, "problems.parquet").itertuples(index=False, name=None))


# -- windows ---------------------------------------------------------------------------------------------------------


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


# -- faults of Animl -------------------------------------------------------------------------------------------------


def test_a_truncated_export_is_made_again_in_halves(site: AnimlServer, here: Settings) -> None:
    site.stream_above = 20
    site.images[-1].objects = []  # the end of the file is written with the last image's last object
    artifact = exported(here, only_reviewed=False, window_images=15_000)
    assert labels_of(here, artifact) == {t.id: t.name for p in site.images for t in p.objects}
    assert len(open_store(here).table(artifact, "images.parquet")) == 200
    assert artifact.counts.notes == {}
    with pytest.raises(json.JSONDecodeError):
        json.loads(site.tasks["0" * 24].body)


@pytest.mark.parametrize("stream_above", [18_000, 20])
def test_an_export_with_another_number_of_images_than_counted_is_made_again(site: AnimlServer, here: Settings, stream_above: int) -> None:
    site.vanishing_images, site.stream_above = 2, stream_above
    artifact = exported(here)
    assert labels_of(here, artifact) == labels_in_animl(site)
    assert len(labels_in_animl(site)) == 198
    assert artifact.counts.notes == {}


def test_an_incomplete_window_that_cannot_be_halved_is_exported_twice(site: AnimlServer, here: Settings) -> None:
    for p in site.images:
        p.taken = DAY
    site.vanishing_images = 1
    artifact = exported(here, created_from="2026-03-01T00:00:00", created_to="2026-03-01T00:00:01")
    assert (artifact.counts.kept, artifact.counts.notes, len(site.export_filters)) == (199, {}, 2)


def test_permanent_miscounts_end_after_a_limited_number_of_exports(site: AnimlServer, here: Settings) -> None:
    site.count_error = 1
    with pytest.raises(ExportError) as caught:
        exported(here, window_images=15_000)
    assert caught.value.details == {"reason": "miscounted"}
    assert len(site.export_filters) < 150


def test_one_failing_image_costs_only_itself_and_is_exported_later(site: AnimlServer, here: Settings) -> None:
    bad = site.images[77]
    site.failing_images = {bad.id}
    artifact = exported(here)
    missing = labels_in_animl(site).keys() - labels_of(here, artifact).keys()
    assert missing == {bad.objects[0].id}
    assert artifact.counts.notes["window_failed"] == 1
    problem, subject, detail = problems(here, artifact)[0]
    assert problem == "window_failed"
    assert subject.startswith("images taken 2026-03-04T")
    assert "could not find deployment" in detail
    site.failing_images.clear()
    before = len(site.export_filters)
    complete = exported(here)
    assert labels_of(here, complete) == labels_in_animl(site)
    assert complete.counts.notes == {}
    assert len(site.export_filters) == before + 1


def test_a_failed_window_does_not_stop_the_others(site: AnimlServer, here: Settings) -> None:
    site.failing_images = {site.images[i].id for i in (0, 51, 199)}
    artifact = exported(here)
    assert artifact.counts.notes["window_failed"] == 3
    assert artifact.counts.kept == 197


def test_a_project_of_few_images_with_one_failing_image_is_exported(site: AnimlServer, here: Settings) -> None:
    del site.images[15:]
    site.failing_images = {site.images[3].id}
    artifact = exported(here)
    assert (artifact.counts.kept, artifact.counts.notes["window_failed"]) == (14, 1)


def test_images_of_one_second_with_a_failing_one_are_reported_and_the_others_exported(site: AnimlServer, here: Settings) -> None:
    for p in site.images[:10]:
        p.taken = DAY
    site.failing_images = {site.images[4].id}
    artifact = exported(here)
    assert (artifact.counts.kept, artifact.counts.notes["window_failed"]) == (190, 1)
    assert "about 10 images" in problems(here, artifact)[0][2]


def test_new_validations_that_cannot_be_exported_do_not_stop_the_step(site: AnimlServer, here: Settings) -> None:
    first = exported(here)
    site.images[7].objects[0].date = datetime.now(UTC)
    site.failing_images = {site.images[7].id}
    artifact = exported(here)
    assert labels_of(here, artifact) == labels_of(here, first)
    assert artifact.counts.notes["window_failed"] == 1
    site.failing_images.clear()
    assert exported(here).counts.notes == {}


def test_when_every_window_fails_the_error_says_why(site: AnimlServer, here: Settings) -> None:
    site.fail_all_exports = True
    with pytest.raises(ExportError, match="could not find deployment") as caught:
        exported(here)
    assert (caught.value.code, caught.value.retryable) == ("all_windows_failed", False)
    assert "\n" not in str(caught.value)
    site.fail_all_exports = False
    assert labels_of(here, exported(here)) == labels_in_animl(site)


def test_an_export_that_never_ends_times_out(site: AnimlServer, here: Settings) -> None:
    site.never_finish = True
    with pytest.raises(ExportError) as caught:
        exported(here, timeout_s=0.1, window_images=15_000)
    assert caught.value.details == {"reason": "timed_out"}


def test_an_export_that_has_died_is_made_in_halves_and_never_waited_for_again(site: AnimlServer, here: Settings) -> None:
    site.never_finish_above = 120
    artifact = exported(here, timeout_s=0.3, window_images=15_000)
    assert labels_of(here, artifact) == labels_in_animl(site)
    assert artifact.counts.notes == {}
    site.never_finish_after = len(site.tasks)
    with pytest.raises(ExportError):
        exported(here, timeout_s=0.1, window_images=15_000, full_after_days=0, created_to=f"{site.images[1].taken:%Y-%m-%dT%H:%M}")
    assert AnimlExportConfig().timeout_s == 1000


def test_a_task_that_animl_has_forgotten_is_started_again(site: AnimlServer, here: Settings) -> None:
    site.revoke_tokens_after = 6  # after the first export has begun
    with pytest.raises(SettingsError):
        exported(here, window_images=15_000)
    assert len(site.tasks) == 1
    site.unknown_tasks, site.tokens = set(site.tasks), {TOKEN: {"isle"}}
    assert labels_of(here, exported(here, window_images=15_000)) == labels_in_animl(site)
    assert len(site.tasks) == 2


# -- images that Animl counts and does not export --------------------------------------------------------------------


@pytest.mark.parametrize("camera", ["1001", "20201015", "2014123"])
def test_cameras_whose_ids_read_as_dates_are_exported(site: AnimlServer, here: Settings, camera: str) -> None:
    for p in site.images[:60]:
        p.camera = camera
    artifact = exported(here, cameras=[camera, "cam1"])
    assert (artifact.counts.kept, artifact.counts.notes) == (60 + sum(p.camera == "cam1" for p in site.images), {})


def test_a_window_short_of_images_is_reported_and_exported_again(site: AnimlServer, here: Settings) -> None:
    site.hidden_from_exports = {p.id for p in site.images[10:17]}
    artifact = exported(here)
    assert (artifact.counts.kept, artifact.counts.notes) == (193, {"window_short": 1})
    assert "7 images are missing" in problems(here, artifact)[0][2]
    assert len(site.export_filters) < 10
    site.hidden_from_exports = set()
    complete = exported(here)
    assert labels_of(here, complete) == labels_in_animl(site)
    assert complete.counts.notes == {}


def test_images_that_were_exported_before_fill_a_window_that_is_short(site: AnimlServer, here: Settings) -> None:
    exported(here)
    site.hidden_from_exports = {p.id for p in site.images[10:17]}
    artifact = exported(here, full_after_days=0)
    assert labels_of(here, artifact) == labels_in_animl(site)
    assert artifact.counts.notes == {"window_short": 1}


def test_when_no_counted_image_is_exported_the_error_names_the_ids(site: AnimlServer, here: Settings) -> None:
    site.hidden_from_exports = {p.id for p in site.images}
    with pytest.raises(ExportError) as caught:
        exported(here, cameras=["cam0", "cam1"])
    assert (caught.value.code, caught.value.details["counted"]) == ("nothing_exported", 134)
    assert "cam1" in str(caught.value)


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


@pytest.mark.parametrize(("new_address", "exports"), [(True, 1), (False, 3)])
def test_an_expired_url_is_replaced(site: AnimlServer, here: Settings, new_address: bool, exports: int) -> None:
    site.expired_urls, site.new_url_on_poll = 2, new_address
    assert labels_of(here, exported(here, window_images=15_000)) == labels_in_animl(site)
    assert len(site.export_filters) == exports


def test_server_errors_and_truncated_downloads_are_retried(site: AnimlServer, here: Settings) -> None:
    site.errors_503, site.truncated_downloads = 3, 2
    assert labels_of(here, exported(here)) == labels_in_animl(site)


def test_an_unavailable_animl_is_retryable_and_keeps_what_arrived(site: AnimlServer, here: Settings) -> None:
    site.unavailable_after = 3
    with pytest.raises(ExportUnreachableError) as caught:
        exported(here)
    assert (caught.value.code, caught.value.retryable) == ("unreachable", True)
    site.unavailable_after = None
    assert labels_of(here, exported(here)) == labels_in_animl(site)
    assert len(site.export_filters) == len(open_store(here).files(exported(here))) - NOT_WINDOWS  # the third was waited for, not started again


@pytest.mark.parametrize("project", ["mainland", "no-such"])
def test_a_project_without_access_is_a_settings_error(site: AnimlServer, here: Settings, project: str) -> None:
    plan = source().model_copy(update={"export": f"animl://{project}"})
    with pytest.raises(SettingsError, match=project):
        export_annotations(plan, open_store(here), here)


def test_a_project_without_fitting_images_is_an_error(site: AnimlServer, here: Settings) -> None:
    with pytest.raises(ExportError) as caught:
        exported(here, created_to="1980-01-01")
    assert caught.value.code == "no_images"


# -- resuming --------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.config import SourceConfig
from animl_pipeline.config.settings import load_settings
from animl_pipeline.storage.store import open_store
settings = load_settings()
export_annotations(SourceConfig.model_validate_json(sys.argv[1]), open_store(settings), settings)
"""


def test_a_killed_export_resumes_without_repeating_an_export(site: AnimlServer, here: Settings) -> None:
    site.never_finish_after = 3
    variables = {"ANIML_STORE": here.store, "ANIML_API_URL": site.url, "ANIML_ID_TOKEN": TOKEN, "ANIML_POLL_S": "0.01", "PATH": ""}
    child = subprocess.Popen([sys.executable, "-c", CHILD, source().model_dump_json()], cwd=ROOT, env=variables)
    deadline = time.monotonic() + 60
    while site.tasks.get(f"{3:024x}") is None or site.tasks[f"{3:024x}"].polls < 2:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    site.never_finish_after = None
    artifact = exported(here)
    assert labels_of(here, artifact) == labels_in_animl(site)
    assert len(site.export_filters) == len(open_store(here).files(artifact)) - NOT_WINDOWS
    assert list((Path(here.store) / "work").glob("animl-*/*")) == []


def test_an_export_resumes_after_the_token_expired(site: AnimlServer, here: Settings) -> None:
    site.revoke_tokens_after = 60
    with pytest.raises(SettingsError) as caught:
        exported(here)
    assert caught.value.code == "token_expired"
    assert len(site.export_filters) > 0
    site.tokens = {"fresh": {"isle"}}
    artifact = exported(here.model_copy(update={"id_token": SecretStr("fresh")}))
    assert labels_of(here, artifact) == labels_in_animl(site)
    assert len(site.export_filters) == len(open_store(here).files(artifact)) - NOT_WINDOWS


def test_a_store_in_s3_keeps_the_state_of_exports(site: AnimlServer, here: Settings, bucket: str) -> None:
    there = here.model_copy(update={"store": f"s3://{bucket}/store"})
    first, exports = exported(there), len(site.export_filters)
    again = exported(there)
    assert labels_of(there, again) == labels_in_animl(site)
    assert (again.cached, again.digest, len(site.export_filters)) == (True, first.digest, exports)


# -- incremental exports ---------------------------------------------------------------------------------------------


def test_without_new_validations_the_step_is_cached(site: AnimlServer, here: Settings) -> None:
    first, exports = exported(here), len(site.export_filters)
    again = exported(here)
    assert (again.cached, again.digest, len(site.export_filters)) == (True, first.digest, exports)


def test_garbage_collection_keeps_the_answers_so_that_nothing_is_exported_again(site: AnimlServer, here: Settings) -> None:
    first, exports = exported(here), len(site.export_filters)
    collect_garbage(open_store(here), GcRules(images=True), dry_run=False, now=time.time() + 100 * 86_400)
    assert not list(open_store(here).object_store.names("steps/"))
    again = exported(here)
    assert (again.cached, again.digest, len(site.export_filters)) == (False, first.digest, exports)


def test_only_new_validations_are_exported_and_later_answers_win(site: AnimlServer, here: Settings) -> None:
    exported(here)
    exports, now = len(site.export_filters), datetime.now(UTC)
    site.images[5].objects = [AnimlObject(site.images[5].objects[0].id, "person", date=now)]
    site.images[6].objects = [AnimlObject("another", "Rat", date=now)]
    site.images.append(AnimlImage("isle:new", taken=DAY, objects=[AnimlObject("n", "fox", date=now)]))
    artifact = exported(here)
    assert labels_of(here, artifact) == labels_in_animl(site)
    assert [set(f) for f in site.export_filters[exports:]] == [{"reviewed", "custom"}]
    assert exported(here).digest == artifact.digest, "validations of the last day are exported again, and change nothing"


def test_new_images_without_a_review_are_exported_if_the_plan_wants_them(site: AnimlServer, here: Settings) -> None:
    exported(here, only_reviewed=False)
    new = AnimlObject("n", validated=False, date=None)
    site.images.append(AnimlImage("isle:new", taken=DAY, added=datetime.now(UTC), objects=[new]))
    assert "n" in labels_of(here, exported(here, only_reviewed=False))


def test_only_a_full_export_sees_deletions(site: AnimlServer, here: Settings, caplog: pytest.LogCaptureFixture) -> None:
    before = labels_in_animl(site)
    exported(here)
    del site.images[:7]
    assert labels_of(here, exported(here)) == before
    with caplog.at_level(logging.WARNING):
        assert labels_of(here, exported(here, full_after_days=0)) == labels_in_animl(site)
    assert "7 images of the last export are no longer in Animl" in caplog.text


@pytest.mark.parametrize("change", ["box moved", "object deleted", "deployment changed", "label renamed"])
def test_only_a_full_export_sees_what_moves_no_validation_date(site: AnimlServer, here: Settings, change: str) -> None:
    site.images[5].objects.append(AnimlObject("second"))
    first = exported(here)
    if change == "box moved":
        site.images[5].objects[1].bbox = (8, 8, 20, 20)
    elif change == "object deleted":
        del site.images[5].objects[1]
    elif change == "deployment changed":
        site.images[5].deployment = "Mesa"
    else:
        site.images[5].objects[1].name = "person"
    assert exported(here).digest == first.digest
    full = exported(here, full_after_days=0)
    assert full.digest != first.digest
    assert labels_of(here, full) == labels_in_animl(site)


def test_a_full_export_without_changes_keeps_the_artifact(site: AnimlServer, here: Settings) -> None:
    first = exported(here)
    exports = len(site.export_filters)
    again = exported(here, full_after_days=0)
    assert len(site.export_filters) == 2 * exports
    assert (again.cached, again.digest) == (True, first.digest)


def test_the_last_export_replaces_failed_windows_of_a_full_one(site: AnimlServer, here: Settings) -> None:
    exported(here)
    del site.images[190:]
    site.failing_images = {site.images[77].id}
    artifact = exported(here, full_after_days=0)
    assert labels_of(here, artifact) == labels_in_animl(site)
    assert artifact.counts.notes["window_failed"] == 1
    site.failing_images.clear()
    assert exported(here, full_after_days=0).counts.notes == {}


def test_each_set_of_filters_has_its_own_state(site: AnimlServer, here: Settings) -> None:
    exported(here, cameras=["cam1"])
    assert exported(here).counts.kept == 200


def test_records_that_cannot_be_merged_are_counted(site: AnimlServer, here: Settings) -> None:
    site.images[1].objects.append(AnimlObject(site.images[1].objects[0].id, "Rat"))
    site.images[2].id = site.images[3].id
    artifact = exported(here, window_images=15_000)
    assert artifact.counts.dropped == {"duplicate_annotation": 1, "ambiguous_image_id": 1, "label_of_ambiguous_image": 2}


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
