"""Export from Animl's API goes on where it was: after a kill, with new validations, after garbage collection."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.storage.gc import GcRules, collect_garbage
from animl_pipeline.storage.store import open_store
from tests.support.animl_exports import NOT_WINDOWS, TOKEN, exported, labels_in_animl, labels_of, source
from tests.support.animl_images import DAY, AnimlImage, AnimlObject, camera_config
from tests.support.animl_server import AnimlServer
from tests.support.paths import ROOT

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


def test_a_deployment_that_was_renamed_since_the_last_full_export_stays_one_location(site: AnimlServer, here: Settings) -> None:
    place = ("2024-05-01T00:00:00Z", 34.0, -119.7)
    site.cameras = [camera_config("cam0", ("Cove", *place))]
    exported(here)
    site.cameras = [camera_config("cam0", ("Cove North", *place))]
    for image in site.images:
        image.deployment = "Cove North" if image.deployment == "Cove" else image.deployment
    for number in range(2):  # an incremental export, and another one that knows the earlier name only from the first
        new = AnimlObject(f"n{number}", "fox", date=datetime.now(UTC))
        site.images.append(AnimlImage(f"isle:new{number}", camera="cam0", deployment="Cove North", taken=DAY, objects=[new]))
        table = open_store(here).table(exported(here), "images.parquet")
        location = dict(zip(table["image_id"], table["location"], strict=True))
        assert location[f"isle:new{number}"] == location[f"isle:{0:032x}"] == "Cove"


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
