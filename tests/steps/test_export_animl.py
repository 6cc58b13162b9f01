"""Export from Animl's API: whole whatever Animl does, resumed after a kill, only what is new, one place for a renamed camera."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from animl_pipeline.config import AnimlExportConfig, SourceConfig, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, PlanError, SettingsError
from animl_pipeline.core.records import Artifact
from animl_pipeline.integrations.animl import CameraDeployment
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.steps.export.animl_merge import Merge
from animl_pipeline.steps.export.animl_requests import SMALL_HOLE
from animl_pipeline.steps.export.locations import merge_deployments
from animl_pipeline.storage.step_cache import open_store
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


def said(here: Settings, artifact: Artifact) -> dict[str, str]:
    """Object id → name, as the tables have it."""
    table = open_store(here).table(artifact, "annotations.parquet")
    return dict(zip(table["annotation_id"], table["label"], strict=True))


def held(site: AnimlServer) -> dict[str, str]:
    """The same, as Animl has it."""
    return {t.id: t.name for p in site.images if p.reviewed for t in p.objects}


def problems(here: Settings, artifact: Artifact) -> list[tuple[str, str, str]]:
    return list(open_store(here).table(artifact, "problems.parquet").itertuples(index=False, name=None))


# -- windows ---------------------------------------------------------------------------------------------------------


def test_a_project_arrives_in_windows_by_name_whatever_each_windows_category_ids_are(site: AnimlServer, here: Settings) -> None:
    artifact = exported(here)
    assert said(here, artifact) == held(site)
    assert artifact.counts.kept == 200
    assert len(site.tasks) > 3
    assert max(t.output["count"] for t in site.tasks.values() if t.output) <= 50
    categories = {json.dumps(json.loads(t.body)["categories"]) for t in site.tasks.values()}
    assert len(categories) > 1


def test_what_animl_answered_is_kept_byte_for_byte_beside_the_merged_export(site: AnimlServer, here: Settings) -> None:
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


def test_images_of_cameras_whose_clock_was_wrong_are_not_lost(site: AnimlServer, here: Settings) -> None:
    site.images[0].taken = datetime(1969, 12, 31, tzinfo=UTC)
    site.images[1].taken = datetime(2199, 1, 1, tzinfo=UTC)
    assert said(here, exported(here)) == held(site)


def test_more_images_of_one_second_than_a_window_holds_are_one_window(site: AnimlServer, here: Settings) -> None:
    for p in site.images[:80]:
        p.taken = DAY
    assert said(here, exported(here)) == held(site)


def test_images_without_a_time_are_said_to_be_lacking(site: AnimlServer, here: Settings) -> None:
    for p in site.images[:3]:
        p.taken = None
    artifact = exported(here)
    assert artifact.counts.noted["images_outside_of_time"] == 1
    assert problems(here, artifact)[0][2].startswith("3 images have no capture time")


def test_a_count_that_takes_animl_too_long_is_asked_in_halves(site: AnimlServer, here: Settings) -> None:
    site.count_seconds_per_image = 0.2
    assert said(here, exported(here)) == held(site)
    site.count_seconds_per_image = 1e9
    with pytest.raises(ExportError, match="took too long"):
        exported(here, full_after_days=0)


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
def test_the_plans_filters_choose(site: AnimlServer, here: Settings, animl: dict[str, Any], count: int) -> None:
    site.images.append(AnimlImage("isle:unseen", camera="cam9", deployment="Mesa", taken=DAY, objects=[AnimlObject("u", "fox", validated=False)]))
    assert exported(here, **animl).counts.kept == count


# -- what Animl does wrong -------------------------------------------------------------------------------------------


def test_an_export_that_animl_cuts_off_is_asked_again_in_halves(site: AnimlServer, here: Settings) -> None:
    site.stream_above = 20
    site.images[-1].objects = []  # the end of the file is written with the last image's last object
    artifact = exported(here, only_reviewed=False, window_images=15_000)
    assert said(here, artifact) == {t.id: t.name for p in site.images for t in p.objects}
    assert len(open_store(here).table(artifact, "images.parquet")) == 200
    assert artifact.counts.noted == {}
    with pytest.raises(json.JSONDecodeError):
        json.loads(site.tasks["0" * 24].body)


@pytest.mark.parametrize("stream_above", [18_000, 20])
def test_an_export_during_which_the_count_moves_is_asked_again(site: AnimlServer, here: Settings, stream_above: int) -> None:
    site.vanishing_images, site.stream_above = 2, stream_above
    artifact = exported(here)
    assert said(here, artifact) == held(site)
    assert len(held(site)) == 198
    assert artifact.counts.noted == {}


def test_a_window_that_cannot_be_halved_is_asked_a_second_time(site: AnimlServer, here: Settings) -> None:
    for p in site.images:
        p.taken = DAY
    site.vanishing_images = 1
    artifact = exported(here, created_from="2026-03-01T00:00:00", created_to="2026-03-01T00:00:01")
    assert (artifact.counts.kept, artifact.counts.noted, len(site.export_filters)) == (199, {}, 2)


def test_an_animl_that_always_miscounts_ends_in_one_line_and_not_in_an_export_an_image(site: AnimlServer, here: Settings) -> None:
    site.count_error = 1
    with pytest.raises(ExportError, match="where Animl counted"):
        exported(here, window_images=15_000)
    assert len(site.export_filters) < 150


def test_one_image_that_fails_costs_a_small_hole_which_is_said_and_filled_later(site: AnimlServer, here: Settings) -> None:
    bad = site.images[77]
    site.failing_images = {bad.id}
    artifact = exported(here)
    lacking = held(site).keys() - said(here, artifact).keys()
    assert bad.objects[0].id in lacking
    assert len(lacking) <= SMALL_HOLE
    assert artifact.counts.noted["window_failed"] == 1
    problem, subject, detail = problems(here, artifact)[0]
    assert problem == "window_failed"
    assert subject.startswith("images taken 2026-03-04T")
    assert "could not find deployment" in detail
    site.failing_images.clear()
    before = len(site.export_filters)
    mended = exported(here)
    assert said(here, mended) == held(site)
    assert mended.counts.noted == {}
    assert len(site.export_filters) == before + 1


def test_a_small_window_that_fails_does_not_stop_the_others(site: AnimlServer, here: Settings) -> None:
    site.failing_images = {site.images[0].id}
    artifact = exported(here, window_images=SMALL_HOLE)
    assert artifact.counts.noted["window_failed"] == 1
    assert artifact.counts.kept > 150


def test_when_every_window_fails_the_line_says_why(site: AnimlServer, here: Settings) -> None:
    site.fail_all_exports = True
    with pytest.raises(ExportError, match=r"not one window of the project 'isle' .* could not find deployment") as caught:
        exported(here)
    assert "\n" not in str(caught.value)
    site.fail_all_exports = False
    assert said(here, exported(here)) == held(site)


def test_exports_that_never_end_are_given_up(site: AnimlServer, here: Settings) -> None:
    site.never_finish = True
    with pytest.raises(ExportError, match=r"still RUNNING after"):
        exported(here, timeout_s=0.1, window_images=15_000)


@pytest.mark.parametrize(("new_address", "exports"), [(True, 1), (False, 3)])
def test_an_address_that_died_is_asked_for_again(site: AnimlServer, here: Settings, new_address: bool, exports: int) -> None:
    site.expired_urls, site.new_url_on_poll = 2, new_address
    assert said(here, exported(here, window_images=15_000)) == held(site)
    assert len(site.export_filters) == exports


def test_hiccups_and_bodies_that_end_early_heal(site: AnimlServer, here: Settings) -> None:
    site.errors_503, site.truncated_downloads = 3, 2
    assert said(here, exported(here)) == held(site)


def test_when_animl_is_gone_one_line_says_so_and_what_arrived_is_kept(site: AnimlServer, here: Settings) -> None:
    site.unavailable_after = 3
    with pytest.raises(ExportError, match=r"Animl cannot be asked for animl://isle: .* answered 503; what has arrived is kept, run again"):
        exported(here)
    site.unavailable_after = None
    assert said(here, exported(here)) == held(site)
    assert len(site.export_filters) == len(open_store(here).files(exported(here))) - NOT_WINDOWS  # the third was waited for, not asked again


@pytest.mark.parametrize("project", ["mainland", "no-such"])
def test_a_project_that_is_not_ours_is_one_clear_line(site: AnimlServer, here: Settings, project: str) -> None:
    plan = source().model_copy(update={"export": f"animl://{project}"})
    with pytest.raises(SettingsError, match=project):
        export_annotations(plan, open_store(here), here)


def test_a_project_without_fitting_images_is_one_clear_line(site: AnimlServer, here: Settings) -> None:
    with pytest.raises(ExportError, match="holds no image that fits"):
        exported(here, created_to="1980-01-01")


# -- going on --------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from animl_pipeline.steps.export import export_annotations
from animl_pipeline.config import SourcePlan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.storage.step_cache import open_store
settings = load_settings()
export_annotations(SourcePlan.model_validate_json(sys.argv[1]), open_store(settings), settings)
"""


def test_a_killed_export_goes_on_and_asks_for_nothing_twice(site: AnimlServer, here: Settings) -> None:
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
    assert said(here, artifact) == held(site)
    assert len(site.export_filters) == len(open_store(here).files(artifact)) - NOT_WINDOWS
    assert list((Path(here.store) / "work").glob("animl-*/*")) == []


def test_a_token_that_ran_out_on_the_way_loses_nothing(site: AnimlServer, here: Settings) -> None:
    site.revoke_tokens_after = 60
    with pytest.raises(SettingsError, match="Animl refused ANIML_ID_TOKEN"):
        exported(here)
    assert len(site.export_filters) > 0
    site.tokens = {"fresh": {"isle"}}
    artifact = exported(here.model_copy(update={"id_token": SecretStr("fresh")}))
    assert said(here, artifact) == held(site)
    assert len(site.export_filters) == len(open_store(here).files(artifact)) - NOT_WINDOWS


def test_a_store_in_s3_remembers_as_a_folder_does(site: AnimlServer, here: Settings, bucket: str) -> None:
    there = here.model_copy(update={"store": f"s3://{bucket}/store"})
    first, exports = exported(there), len(site.export_filters)
    again = exported(there)
    assert said(there, again) == held(site)
    assert (again.cached, again.digest, len(site.export_filters)) == (True, first.digest, exports)


# -- only what is new ------------------------------------------------------------------------------------------------


def test_when_nothing_was_validated_since_nothing_is_exported_and_the_step_is_cached(site: AnimlServer, here: Settings) -> None:
    first, exports = exported(here), len(site.export_filters)
    again = exported(here)
    assert (again.cached, again.digest, len(site.export_filters)) == (True, first.digest, exports)


def test_only_what_was_validated_since_is_asked_for_and_later_answers_win(site: AnimlServer, here: Settings) -> None:
    exported(here)
    exports, now = len(site.export_filters), datetime.now(UTC)
    site.images[5].objects = [AnimlObject(site.images[5].objects[0].id, "person", date=now)]
    site.images[6].objects = [AnimlObject("another", "Rat", date=now)]
    site.images.append(AnimlImage("isle:new", taken=DAY, objects=[AnimlObject("n", "fox", date=now)]))
    artifact = exported(here)
    assert said(here, artifact) == held(site)
    assert [set(f) for f in site.export_filters[exports:]] == [{"reviewed", "custom"}]
    assert exported(here).digest == artifact.digest, "validations of the last day are asked for again, and change nothing"


def test_only_a_full_export_notices_what_was_deleted(site: AnimlServer, here: Settings, caplog: pytest.LogCaptureFixture) -> None:
    before = held(site)
    exported(here)
    del site.images[:7]
    assert said(here, exported(here)) == before
    with caplog.at_level(logging.WARNING):
        assert said(here, exported(here, full_after_days=0)) == held(site)
    assert "7 images of the last export are no longer in Animl" in caplog.text


def test_a_full_export_in_which_nothing_changed_changes_nothing(site: AnimlServer, here: Settings) -> None:
    first = exported(here)
    exports = len(site.export_filters)
    again = exported(here, full_after_days=0)
    assert len(site.export_filters) == 2 * exports
    assert (again.cached, again.digest) == (True, first.digest)


def test_what_an_earlier_export_holds_stands_in_for_a_hole_in_a_full_one(site: AnimlServer, here: Settings) -> None:
    exported(here)
    del site.images[190:]
    site.failing_images = {site.images[77].id}
    artifact = exported(here, full_after_days=0)
    assert said(here, artifact) == held(site)
    assert artifact.counts.noted["window_failed"] == 1
    site.failing_images.clear()
    assert exported(here, full_after_days=0).counts.noted == {}


def test_other_filters_are_another_memory(site: AnimlServer, here: Settings) -> None:
    exported(here, cameras=["cam1"])
    assert exported(here).counts.kept == 200


IDS = st.sampled_from("abcde")
ANSWERS = st.lists(st.dictionaries(IDS, st.dictionaries(st.sampled_from(["1", "2", "3"]), st.sampled_from(["fox", "Rat"]), max_size=3)), max_size=4)


@hypothesis_settings(max_examples=60, deadline=None)
@given(ANSWERS, st.randoms(use_true_random=False))
def test_a_merge_is_a_dictionary_that_later_answers_update(answers: list[dict[str, dict[str, str]]], random: Any) -> None:
    truth: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder, Merge(Path(folder) / "m") as merge:
        for answer in answers:
            numbers = dict(zip(random.sample(["fox", "Rat"], 2), (1, 2), strict=True))
            cct = {
                "images": [{"id": image} for image in answer],
                "annotations": [
                    {"id": image + o, "image_id": image, "category_id": numbers[name]}
                    for image, objects in answer.items()
                    for o, name in objects.items()
                ],
                "categories": [{"id": i, "name": n} for n, i in numbers.items()],
            }
            changed = sum(image not in truth or truth[image] != objects for image, objects in answer.items())
            assert merge.add(cct) == changed
            truth |= answer
        merge.write(Path(folder) / "merged.json")
        merged = json.loads((Path(folder) / "merged.json").read_text())
    names = {c["id"]: c["name"] for c in merged["categories"]}
    assert [i["id"] for i in merged["images"]] == sorted(truth)
    assert {a["id"]: names[a["category_id"]] for a in merged["annotations"]} == {i + o: n for i, objects in truth.items() for o, n in objects.items()}


def test_records_that_cannot_be_merged_are_counted_like_those_of_a_file(site: AnimlServer, here: Settings) -> None:
    site.images[1].objects.append(AnimlObject(site.images[1].objects[0].id, "Rat"))
    site.images[2].id = site.images[3].id
    artifact = exported(here, window_images=15_000)
    assert artifact.counts.dropped == {"duplicate_object": 1, "duplicate_image": 1}


# -- places ----------------------------------------------------------------------------------------------------------


def test_a_renamed_camera_deployment_is_one_location_by_its_oldest_name(site: AnimlServer, here: Settings) -> None:
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
    apart = exported(here, merge_locations_within_m=None)
    assert set(store.table(apart, "images.parquet")["location"]) == {"Cove", "Dune", "Ridge"}
    assert math.isnan(store.table(apart, "locations.parquet")["lat"][0])


def test_a_name_used_at_two_sites_is_one_location_since_exports_say_the_name_only() -> None:
    far = [
        CameraDeployment(deployment=n, camera="c", started=None, lat=lat, lon=0.0) for n, lat in (("Gate", 34.0), ("Gate", 35.0), ("Bay", 35.00001))
    ]
    assert {p.location for p in merge_deployments(far, 10)} == {"Bay"}


def metres(a: CameraDeployment, b: CameraDeployment) -> float:
    """Great-circle distance by the spherical law of cosines' stable form (atan2)."""
    p, q, d = math.radians(a.lat), math.radians(b.lat), math.radians(b.lon - a.lon)
    y = math.hypot(math.cos(q) * math.sin(d), math.cos(p) * math.sin(q) - math.sin(p) * math.cos(q) * math.cos(d))
    return 6_371_008.8 * math.atan2(y, math.sin(p) * math.sin(q) + math.cos(p) * math.cos(q) * math.cos(d))


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12), st.sampled_from([5.0, 25.0, 60.0]))
def test_locations_are_the_chains_of_deployments_that_are_near(grid: list[tuple[int, int]], radius: float) -> None:
    """Deployments on a grid of about 11 m at 34 degrees north, by the slow way: join until nothing more joins."""
    all_ = [
        CameraDeployment(deployment=f"n{i:02d}", camera="c", started=None, lat=34 + y * 1e-4, lon=-119 + x * 1e-4) for i, (y, x) in enumerate(grid)
    ]
    loc = {d.deployment: d.deployment for d in all_}
    for _ in all_:
        for a in all_:
            for b in all_:
                if metres(a, b) <= radius:
                    loc[a.deployment] = loc[b.deployment] = min(loc[a.deployment], loc[b.deployment])
    assert {p.deployment: p.location for p in merge_deployments(all_, radius)} == loc


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
def test_a_source_that_does_not_fit_is_one_line(changes: dict[str, Any], line: str) -> None:
    data = {"model": "m", "sources": [{"name": "a", "images": "i"} | changes], "labels": {"classes": {"fox": ["fox"], "bird": ["bird"]}}}
    with pytest.raises(PlanError) as caught:
        check_plan(data)
    assert line in str(caught.value)


def test_the_source_that_the_docs_show_is_one_with_every_key_and_its_default() -> None:
    text = (ROOT / "docs" / "animl.md").read_text(encoding="utf-8")
    [shown] = yaml.safe_load(text.split("```yaml")[1].split("```")[0])["sources"]
    whole = SourceConfig.model_validate(shown).animl
    assert whole is not None
    assert shown["animl"].keys() == AnimlExportConfig.model_fields.keys()
    assert whole.model_copy(update={"created_from": None, "created_to": None}) == AnimlExportConfig()


def test_no_secret_is_in_the_store_or_the_log_or_an_error(site: AnimlServer, here: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        exported(here)
        site.fail_all_exports = True
        with pytest.raises(ExportError) as caught:
            exported(here, full_after_days=0)
    secrets = [TOKEN, *site.signatures]
    files = [p.read_bytes() for p in Path(here.store).rglob("*") if p.is_file()]
    assert len(files) > 10
    assert [s for s in secrets if any(s.encode() in data for data in files)] == []
    said = f"{caplog.text} {caught.value} {source()!r} {here!r}"
    assert [s for s in secrets if s in said] == []


# -- at the size of a real project -----------------------------------------------------------------------------------


@pytest.mark.realdata
def test_a_project_of_six_thousand_images_with_animls_exact_fields_arrives_whole(here: Settings) -> None:
    tool = ROOT.parent / "shared" / "tools" / "gen_cct.py"
    if not tool.exists():
        pytest.skip(f"no generator of exports at {tool}")
    spec = importlib.util.spec_from_file_location("gen_cct", tool)
    assert spec is not None
    assert spec.loader is not None
    gen_cct = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gen_cct)
    cct = gen_cct.make_cct(6000, 75, 8, 3, 0, "isle", 0.1, False, False)
    with serve_animl(images_from_coco(cct)) as site:
        site.labels, site.stream_above = [c["name"] for c in cct["categories"][1:]], 1800
        artifact = exported(here.model_copy(update={"api_url": site.url}), window_images=2500, only_reviewed=False)
    names = {c["id"]: c["name"] for c in cct["categories"]}
    assert said(here, artifact) == {a["id"]: names[a["category_id"]] for a in cct["annotations"]}
    images = open_store(here).table(artifact, "images.parquet")
    assert dict(zip(images["image_id"], images["location"], strict=True)) == {i["id"]: i["location"] for i in cct["images"]}
