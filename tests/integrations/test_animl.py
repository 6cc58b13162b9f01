"""The Animl client: queries, retries, errors and unexpected answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from pydantic import SecretStr

from animl_pipeline.core.errors import SettingsError
from animl_pipeline.integrations.animl import ImageFilters
from animl_pipeline.storage.read_remote_files import RemoteError
from tests.support.animl_client import TOKEN, client_of
from tests.support.animl_images import DAY, AnimlImage, AnimlObject, camera_config, make_images
from tests.support.animl_server import AnimlServer

# -- queries ---------------------------------------------------------------------------------------------------------


def test_download_gives_the_export_byte_for_byte(site: AnimlServer, tmp_path: Path) -> None:
    client = client_of(site)
    task = client.start_export(ImageFilters(only_reviewed=True))
    done = client.wait_for_export(task, 10)
    assert (done.status, done.count) == ("COMPLETE", 30)
    client.download(done.url, tmp_path / "export.json")
    assert (tmp_path / "export.json").read_bytes() == site.tasks[task].body
    assert site.request_counts["task"] == site.polls_until_done + 1


def test_an_export_that_comes_too_slowly_is_given_up_with_a_retryable_error(site: AnimlServer, tmp_path: Path) -> None:
    client = client_of(site, max_download_s=1e-9)
    done = client.wait_for_export(client.start_export(ImageFilters(only_reviewed=True)), 10)
    with pytest.raises(RemoteError) as caught:
        client.download(done.url, tmp_path / "export.json")
    assert (caught.value.reason, caught.value.retryable) == ("timed_out", True)


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (ImageFilters(), 31),
        (ImageFilters(only_reviewed=True), 30),
        (ImageFilters(created_from=DAY + timedelta(hours=10)), 20),
        (ImageFilters(created_to=DAY + timedelta(hours=10)), 11),
        (ImageFilters(created_from=DAY + timedelta(hours=3), created_to=DAY + timedelta(hours=5)), 2),
        (ImageFilters(cameras=("cam1",)), 11),
        (ImageFilters(deployments=("Cove", "Ridge")), 21),
        (ImageFilters(labels=("Rat",)), 15),
        (ImageFilters(validated_since=DAY + timedelta(days=10)), 1),
    ],
)
def test_every_filter_chooses_images(site: AnimlServer, filters: ImageFilters, count: int) -> None:
    site.images[0].objects[0].date = DAY + timedelta(days=20)
    site.images.append(AnimlImage("isle:unseen", taken=DAY, objects=[AnimlObject("u", validated=False, by="Not Reviewed")]))
    assert client_of(site).count_images(filters) == count


def test_filters_send_times_in_utc() -> None:
    local = datetime.fromisoformat("2026-03-01T02:00:00-08:00")
    assert (
        ImageFilters(created_from=local).as_input()
        == ImageFilters(created_from=local.astimezone(UTC)).as_input()
        == {"createdStart": "2026-03-01T10:00:00.000Z"}
    )


def test_deployments_have_the_names_of_exports_and_valid_coordinates(site: AnimlServer) -> None:
    site.cameras = [
        camera_config("cam0", ("default", None, 34.0, -119.7), ("Cove", "2026-01-01T00:00:00Z", 34.01, -119.7), ("Nowhere", None, None, None)),
        camera_config("cam1", ("Ridge", "2026-01-01T00:00:00Z", 0.0, 0.0), ("Wrong", None, -119.7, 34.0)),
    ]
    found = client_of(site).deployments()
    assert [(d.deployment, d.lat, d.lon) for d in found] == [("cam0-default", 34.0, -119.7), ("Cove", 34.01, -119.7)]


# -- retries ---------------------------------------------------------------------------------------------------------


def test_server_errors_and_truncated_downloads_are_retried(site: AnimlServer, tmp_path: Path) -> None:
    client = client_of(site)
    site.errors_503 = 3
    assert client.count_images(ImageFilters()) == 30
    done = client.wait_for_export(client.start_export(ImageFilters()), 10)
    site.truncated_downloads = 2
    client.download(done.url, tmp_path / "export.json")
    assert len((tmp_path / "export.json").read_bytes()) == len(site.tasks["0" * 24].body)


def test_retries_end_after_five_attempts(site: AnimlServer) -> None:
    site.errors_503 = 1000
    with pytest.raises(RemoteError) as caught:
        client_of(site).count_images(ImageFilters())
    assert caught.value.reason == "unreachable"
    assert site.request_counts["POST"] == 5


def test_a_count_that_times_out_is_not_retried(site: AnimlServer) -> None:
    site.count_seconds_per_image = 2
    client = client_of(site)
    with pytest.raises(RemoteError) as caught:
        client.count_images(ImageFilters())
    assert (caught.value.reason, site.request_counts["imagesCount"]) == ("timed_out", 1)
    assert client.count_images(ImageFilters(created_to=DAY + timedelta(hours=10))) == 10


def test_waiting_for_an_export_ends_at_the_timeout(site: AnimlServer) -> None:
    site.never_finish = True
    client = client_of(site)
    with pytest.raises(RemoteError) as caught:
        client.wait_for_export(client.start_export(ImageFilters()), 0.3)
    assert caught.value.reason == "timed_out"


def test_an_expired_url_is_not_retried(site: AnimlServer, tmp_path: Path) -> None:
    client = client_of(site)
    done = client.wait_for_export(client.start_export(ImageFilters()), 10)
    site.expired_urls = 1
    with pytest.raises(RemoteError) as caught:
        client.download(done.url, tmp_path / "export.json")
    assert (caught.value.reason, site.request_counts["GET"]) == ("forbidden", 1)


# -- what Animl says of an error -------------------------------------------------------------------------------------

MISSING_PARAMETER = "ParameterNotFound: /ml/mirav2-batch-endpoint-prod"


@pytest.mark.parametrize(
    "body",
    [
        {"message": MISSING_PARAMETER},
        {"errorMessage": MISSING_PARAMETER, "errorType": "Error"},
        {"errors": [{"message": MISSING_PARAMETER, "extensions": {"code": "INTERNAL_SERVER_ERROR"}}], "data": None},
        {"errors": [{"message": {"message": MISSING_PARAMETER}}]},
    ],
)
def test_a_status_500_shows_the_reason_in_its_body(site: AnimlServer, body: Any) -> None:
    site.errors_500 = body
    with pytest.raises(RemoteError) as caught:
        client_of(site).count_images(ImageFilters())
    assert (caught.value.reason, caught.value.retryable) == ("unreachable", True)
    assert MISSING_PARAMETER in str(caught.value)


def test_a_status_500_of_the_sign_in_is_not_retried(site: AnimlServer) -> None:
    site.errors_500 = {"errors": [{"message": f"no such user: {TOKEN}", "extensions": {"code": "AUTHENTICATION_ERROR"}}]}
    with pytest.raises(SettingsError) as caught:
        client_of(site).count_images(ImageFilters())
    assert caught.value.code == "token_expired"
    assert TOKEN not in str(caught.value)
    assert site.request_counts["POST"] == 1


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ({"message": "no deployment", "extensions": {"code": "INTERNAL_SERVER_ERROR"}}, "no deployment"),
        ({"message": {"message": "no deployment"}}, "no deployment"),
        ({"extensions": {"code": "INTERNAL_SERVER_ERROR"}}, "INTERNAL_SERVER_ERROR"),
        ([{"message": "no deployment"}], "no deployment"),
        ("no deployment", "no deployment"),
        (None, ""),
        ({}, ""),
    ],
)
def test_the_reason_of_a_failed_export_is_read_in_every_form(site: AnimlServer, error: Any, shown: str) -> None:
    site.next_answers = [{"data": {"task": {"status": "FAIL", "output": {"error": error}}}}]
    assert client_of(site).wait_for_export("t", 1).error == shown


# -- ids that read as dates, and boxes without an image size ---------------------------------------------------------


@pytest.mark.parametrize("camera", ["1001", "20201015", "2014123", "23", "2020-W01", "12:30", "cam1", "RECONYX-2020", "1", "99999", 'it\'s "new"'])
def test_cameras_and_labels_are_exported_whatever_their_ids_read_as(site: AnimlServer, tmp_path: Path, camera: str) -> None:
    client = client_of(site)
    site.images[0].camera, site.images[1].camera, site.images[1].objects[0].name = camera, "other", camera
    site.labels.append(camera)
    for filters, expected in [
        (ImageFilters(cameras=(camera, "other")), {0, 1}),
        (ImageFilters(labels=(camera,)), {1}),
        (ImageFilters(cameras=(camera,), validated_since=DAY - timedelta(days=5000)), {0}),
    ]:
        done = client.wait_for_export(client.start_export(filters), 10)
        expected |= {i for i, p in enumerate(site.images) if filters.cameras and p.camera == camera}
        assert done.count == client.count_images(filters) == len(expected)


def test_relative_boxes_are_read_on_all_pages(site: AnimlServer) -> None:
    found = client_of(site).relative_boxes([p.id for p in site.images] * 4)
    assert found == {t.id: pytest.approx([4 / 48, 4 / 64, 24 / 48, 24 / 64]) for p in site.images for t in p.objects}
    site.images = make_images(130)
    found = client_of(site).relative_boxes([p.id for p in site.images])
    assert len(found) == 130


def test_a_url_that_is_not_graphql_is_an_error(site: AnimlServer) -> None:
    with pytest.raises(SettingsError, match="/external"):
        client_of(site, api_url=f"{site.address}/graphql").count_images(ImageFilters())


def test_the_internal_url_needs_an_api_key_and_has_no_current_project(site: AnimlServer) -> None:
    count = {"query": "query ($input: QueryImagesCountInput!) { imagesCount(input: $input) { count } }", "variables": {"input": {"filters": {}}}}
    export = {
        "query": "query ($input: QueryTaskInput!) { task(input: $input) { _id } }",
        "variables": {"input": {"taskId": client_of(site).start_export(ImageFilters())}},
    }
    url = f"{site.address}/internal"
    assert requests.post(url, json=count, timeout=5).status_code == 403
    key = {"x-api-key": site.api_key}
    assert requests.post(url, json=count, headers=key, timeout=5).json()["data"]["imagesCount"]["count"] == 30
    assert "errors" in requests.post(url, json=export, headers=key, timeout=5).json()


# -- unexpected answers ---------------------------------------------------------------------------------------------

ODD: list[Any] = [None, [], 5, {"data": None}, {"data": []}, {"data": 5}, {"data": {"x": 1}}, {"errors": [{"message": "a", "extensions": 5}]}]


@pytest.mark.parametrize(
    ("call", "answers"),
    [
        (
            lambda c: c.count_images(ImageFilters()),
            [{"data": {"imagesCount": None}}, *({"data": {"imagesCount": {"count": n}}} for n in (None, "x", -1, 1e999))],
        ),
        (lambda c: c.start_export(ImageFilters()), [{"data": {"exportAnnotations": None}}]),
        (
            lambda c: c.wait_for_export("t", 1),
            [{"data": {"task": t}} for t in (None, {}, {"status": "FAIL", "output": 5}, {"output": {"count": "x"}})],
        ),
        (lambda c: c.deployments(), [{"data": {"projects": p}} for p in (5, [None], [{"_id": "isle", "cameraConfigs": [None]}])]),
    ],
    ids=["count", "export", "task", "locations"],
)  # fmt: skip
def test_an_unexpected_answer_is_refused(site: AnimlServer, call: Any, answers: list[Any]) -> None:
    for answer in [*ODD, *answers]:
        site.next_answers = [answer]
        with pytest.raises(RemoteError) as caught:
            call(client_of(site))
        assert caught.value.reason == "refused", answer


def test_a_deployment_without_a_name_is_skipped(site: AnimlServer) -> None:
    loc = {"geometry": {"coordinates": [-119.7, 34.0]}}
    deployments = [None, {"_id": "a", "name": None, "location": loc}, {"_id": "b", "name": "cove", "startDate": 5, "location": loc}]
    site.next_answers = [{"data": {"projects": [{"_id": "isle", "cameraConfigs": [{"_id": "c", "deployments": deployments}]}]}}]
    assert [d.deployment for d in client_of(site).deployments()] == ["cove"]


@pytest.mark.parametrize("url", ["", "nonsense", "file:///etc/passwd", "http://[::1?X-Amz-Signature=do-not-tell"])
def test_an_export_without_a_valid_url_has_failed(site: AnimlServer, tmp_path: Path, url: str) -> None:
    with pytest.raises(RemoteError) as caught:
        client_of(site).download(SecretStr(url), tmp_path / "x")
    assert caught.value.reason == "failed"
