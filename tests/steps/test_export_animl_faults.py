"""Export from Animl's API when Animl fails: truncated, missing, dead and short exports, retries."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from animl_pipeline.config import AnimlExportConfig
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ExportError, ExportUnreachableError, SettingsError
from animl_pipeline.storage.store import open_store
from tests.support.animl_exports import NOT_WINDOWS, TOKEN, exported, labels_in_animl, labels_of, problems
from tests.support.animl_images import DAY
from tests.support.animl_server import AnimlServer


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
