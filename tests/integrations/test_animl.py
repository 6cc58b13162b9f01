"""Animl's API: who asks, what is asked, what can heal and what cannot, and that no secret ever shows."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from pydantic import SecretStr

from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.integrations.animl import AnimlClient, ImageFilters
from animl_pipeline.storage.remote_files import RemoteError
from tests.support.animl_server import DAY, AnimlImage, AnimlObject, AnimlServer, camera_config, make_images, serve_animl
from tests.support.cognito_server import CognitoPool, serve_cognito

TOKEN = "token-of-a-service-user"  # noqa: S105 - opens the test's own server
PASSWORD = "correct horse battery staple"  # noqa: S105
POOL, CLIENT, USER = "us-west-2_AbCdEf123", "client1", "retrainer@example.org"


@pytest.fixture
def site() -> Iterator[AnimlServer]:
    with serve_animl(make_images(30)) as site:
        yield site


def settings_for(site: AnimlServer, **changes: Any) -> Settings:
    values: dict[str, Any] = {"api_url": site.url, "id_token": SecretStr(TOKEN), "poll_s": 0.01, "timeout_s": 5}
    return Settings(**(values | changes))


def asking(site: AnimlServer, **changes: Any) -> AnimlClient:
    return AnimlClient("isle", settings_for(site, **changes))


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_an_export_arrives_as_animl_made_it(site: AnimlServer, tmp_path: Path) -> None:
    client = asking(site)
    task = client.begin_export(ImageFilters(only_reviewed=True))
    outcome = client.outcome(task, 10)
    assert (outcome.status, outcome.count) == ("COMPLETE", 30)
    client.download(outcome.url, tmp_path / "export.json")
    assert (tmp_path / "export.json").read_bytes() == site.tasks[task].body
    assert site.request_counts["task"] == site.polls_until_done + 1


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
def test_every_filter_reaches_animl(site: AnimlServer, filters: ImageFilters, count: int) -> None:
    site.images[0].objects[0].date = DAY + timedelta(days=20)
    site.images.append(AnimlImage("isle:unseen", taken=DAY, objects=[AnimlObject("u", validated=False, by="Not Reviewed")]))
    assert asking(site).count(filters) == count


def test_a_moment_of_another_zone_is_the_same_moment() -> None:
    local = datetime.fromisoformat("2026-03-01T02:00:00-08:00")
    assert (
        ImageFilters(created_from=local).as_input()
        == ImageFilters(created_from=local.astimezone(UTC)).as_input()
        == {"createdStart": "2026-03-01T10:00:00.000Z"}
    )


def test_deployments_come_with_the_names_that_exports_use_and_without_those_that_stand_nowhere(site: AnimlServer) -> None:
    site.cameras = [
        camera_config("cam0", ("default", None, 34.0, -119.7), ("Cove", "2026-01-01T00:00:00Z", 34.01, -119.7), ("Nowhere", None, None, None)),
        camera_config("cam1", ("Ridge", "2026-01-01T00:00:00Z", 0.0, 0.0), ("Wrong", None, -119.7, 34.0)),
    ]
    found = asking(site).deployments()
    assert [(d.deployment, d.lat, d.lon) for d in found] == [("cam0-default", 34.0, -119.7), ("Cove", 34.01, -119.7)]


# -- what can heal ---------------------------------------------------------------------------------------------------


def test_hiccups_heal(site: AnimlServer, tmp_path: Path) -> None:
    client = asking(site)
    site.errors_503 = 3
    assert client.count(ImageFilters()) == 30
    outcome = client.outcome(client.begin_export(ImageFilters()), 10)
    site.truncated_downloads = 2
    client.download(outcome.url, tmp_path / "export.json")
    assert len((tmp_path / "export.json").read_bytes()) == len(site.tasks["0" * 24].body)


def test_what_does_not_heal_ends_after_some_tries(site: AnimlServer) -> None:
    site.errors_503 = 1000
    with pytest.raises(RemoteError, match="answered 503") as caught:
        asking(site).count(ImageFilters())
    assert caught.value.reason == "unreachable"
    assert site.request_counts["POST"] == 5


def test_a_count_that_takes_longer_than_animl_answers_is_not_asked_again(site: AnimlServer) -> None:
    site.count_seconds_per_image = 2
    client = asking(site)
    with pytest.raises(RemoteError) as caught:
        client.count(ImageFilters())
    assert (caught.value.reason, site.request_counts["imagesCount"]) == ("timed_out", 1)
    assert client.count(ImageFilters(created_to=DAY + timedelta(hours=10))) == 10


def test_an_export_that_never_ends_is_given_up_at_the_deadline(site: AnimlServer) -> None:
    site.never_finish = True
    client = asking(site)
    with pytest.raises(RemoteError, match=r"still RUNNING after") as caught:
        client.outcome(client.begin_export(ImageFilters()), 0.3)
    assert caught.value.reason == "timed_out"


def test_an_address_that_died_is_said_to_be_dead_at_once(site: AnimlServer, tmp_path: Path) -> None:
    client = asking(site)
    outcome = client.outcome(client.begin_export(ImageFilters()), 10)
    site.expired_urls = 1
    with pytest.raises(RemoteError) as caught:
        client.download(outcome.url, tmp_path / "export.json")
    assert (caught.value.reason, site.request_counts["GET"]) == ("forbidden", 1)


# -- the doors -------------------------------------------------------------------------------------------------------


def test_without_an_address_the_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="set ANIML_API_URL"):
        AnimlClient("isle", Settings(api_url=""))


@pytest.mark.parametrize(
    "address",
    [
        "http://api.example.org/external",
        "ftp://x/external",
        "https://me:secret@api.example.org/external",
        "external",
        "https://h:99999/external",
        "https://[::1/external",
    ],
)
def test_a_token_goes_to_no_address_that_is_not_safe(address: str) -> None:
    with pytest.raises(SettingsError, match="ANIML_API_URL") as caught:
        AnimlClient("isle", Settings(api_url=address, id_token=SecretStr(TOKEN)))
    assert "secret" not in str(caught.value).replace("secrets", "")


def test_without_token_and_user_the_message_names_all_settings(site: AnimlServer) -> None:
    with pytest.raises(SettingsError, match=r"not set: ANIML_ID_TOKEN, ANIML_PASSWORD, ANIML_COGNITO_CLIENT"):
        asking(site, id_token=SecretStr(""), user=USER, cognito_pool=POOL).count(ImageFilters())
    assert site.request_counts["POST"] == 0


def test_a_token_that_ran_out_is_one_clear_line(site: AnimlServer) -> None:
    client = asking(site)
    assert client.count(ImageFilters()) == 30
    site.revoke_tokens_after = 1
    with pytest.raises(SettingsError, match="Animl refused ANIML_ID_TOKEN") as caught:
        client.count(ImageFilters())
    assert TOKEN not in str(caught.value)


def test_a_project_of_others_is_one_clear_line(site: AnimlServer) -> None:
    with pytest.raises(SettingsError, match="does not let this user export the project 'mainland'"):
        AnimlClient("mainland", settings_for(site)).count(ImageFilters())


def test_another_projects_task_is_not_shown(site: AnimlServer) -> None:
    site.tokens[TOKEN].add("mainland")
    task = asking(site).begin_export(ImageFilters())
    with pytest.raises(SettingsError, match="mainland"):
        AnimlClient("mainland", settings_for(site)).outcome(task, 1)


def test_a_wrong_door_is_one_clear_line(site: AnimlServer) -> None:
    with pytest.raises(SettingsError, match="must end in /external"):
        asking(site, api_url=f"{site.address}/graphql").count(ImageFilters())


def test_the_internal_door_wants_its_key_and_has_no_current_project(site: AnimlServer) -> None:
    question = {"query": "query ($input: QueryImagesCountInput!) { imagesCount(input: $input) { count } }", "variables": {"input": {"filters": {}}}}
    export = {
        "query": "query ($input: QueryTaskInput!) { task(input: $input) { _id } }",
        "variables": {"input": {"taskId": asking(site).begin_export(ImageFilters())}},
    }
    door = f"{site.address}/internal"
    assert requests.post(door, json=question, timeout=5).status_code == 403
    key = {"x-api-key": site.api_key}
    assert requests.post(door, json=question, headers=key, timeout=5).json()["data"]["imagesCount"]["count"] == 30
    assert "errors" in requests.post(door, json=export, headers=key, timeout=5).json()


# -- signing in ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cognito(site: AnimlServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CognitoPool]:
    pytest.importorskip("pycognito", reason="the extra animl-pipeline[cognito] is not installed")
    site.tokens.clear()

    def issue() -> str:
        token = f"id-token-{uuid.uuid4().hex}"
        site.tokens[token] = {"isle"}
        return token

    with serve_cognito(CognitoPool(POOL, CLIENT, USER, PASSWORD, issue)) as cognito:
        monkeypatch.setenv("AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER", cognito.address)
        yield cognito


def service_user(site: AnimlServer, **changes: Any) -> AnimlClient:
    values = {"id_token": SecretStr(""), "user": USER, "password": SecretStr(PASSWORD), "cognito_pool": POOL, "cognito_client": CLIENT}
    return asking(site, **(values | changes))


def test_a_service_user_proves_the_password_without_sending_it(site: AnimlServer, cognito: CognitoPool) -> None:
    assert service_user(site).count(ImageFilters()) == 30
    assert len(cognito.asked) == 2
    assert PASSWORD not in str(cognito.asked)


def test_a_service_user_signs_in_anew_when_the_token_ran_out(site: AnimlServer, cognito: CognitoPool) -> None:
    client = service_user(site)
    site.revoke_tokens_after = 2
    assert [client.count(ImageFilters()) for _ in range(4)] == [30] * 4
    assert len(cognito.asked) == 4


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"password": SecretStr("wrong")}, r"Cognito refused the user retrainer@example\.org \(NotAuthorizedException\)"),
        ({"cognito_client": "other"}, r"ResourceNotFoundException.*ANIML_COGNITO_CLIENT"),
        ({"cognito_pool": "my-pool"}, "ANIML_COGNITO_POOL: expected a user pool's id"),
    ],
)
def test_a_refused_sign_in_is_one_clear_line(site: AnimlServer, cognito: CognitoPool, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError, match=line) as caught:
        service_user(site, **changes).count(ImageFilters())
    assert caught.value.__cause__ is None
    assert "wrong" not in str(caught.value)


def test_a_second_factor_is_one_clear_line(site: AnimlServer, cognito: CognitoPool) -> None:
    cognito.second_factor = True
    with pytest.raises(SettingsError, match="second factor"):
        service_user(site).count(ImageFilters())


@pytest.mark.parametrize("said", [f"{TOKEN}\n", f" {TOKEN}\r\n", f"Bearer {TOKEN}"])
def test_a_token_counts_without_what_came_along_when_it_was_copied(site: AnimlServer, said: str) -> None:
    assert asking(site, id_token=SecretStr(said)).count(ImageFilters()) == 30


@pytest.mark.parametrize("said", [f"'{TOKEN}'", f"{TOKEN}\nX-Evil: 1", f"{TOKEN}\N{RIGHT DOUBLE QUOTATION MARK}"])
def test_what_cannot_be_a_token_is_one_line_that_does_not_tell_it(site: AnimlServer, said: str) -> None:
    with pytest.raises(SettingsError, match="ANIML_ID_TOKEN: expected a token of letters") as caught:
        asking(site, id_token=SecretStr(said)).count(ImageFilters())
    assert TOKEN not in str(caught.value)
    assert site.request_counts["POST"] == 0


ODD: list[Any] = [None, [], 5, {"data": None}, {"data": []}, {"data": 5}, {"data": {"x": 1}}, {"errors": [{"message": "a", "extensions": 5}]}]


@pytest.mark.parametrize(
    ("ask", "answers"),
    [
        (lambda c: c.count(ImageFilters()), [{"data": {"imagesCount": None}}, *({"data": {"imagesCount": {"count": n}}} for n in (None, "x", -1, 1e999))]),
        (lambda c: c.begin_export(ImageFilters()), [{"data": {"exportAnnotations": None}}]),
        (lambda c: c.outcome("t", 1), [{"data": {"task": t}} for t in (None, {}, {"status": "FAIL", "output": 5}, {"output": {"count": "x"}})]),
        (lambda c: c.deployments(), [{"data": {"projects": p}} for p in (5, [None], [{"_id": "isle", "cameraConfigs": [None]}])]),
    ],
    ids=["count", "export", "task", "locations"],
)  # fmt: skip
def test_an_answer_in_another_form_is_one_line_whatever_it_is(site: AnimlServer, ask: Any, answers: list[Any]) -> None:
    for answer in [*ODD, *answers]:
        site.next_answers = [answer]
        with pytest.raises(RemoteError, match=r"answered in a form that is not Animl's; check ANIML_API_URL") as caught:
            ask(asking(site))
        assert caught.value.reason == "refused", answer


def test_a_deployment_without_a_name_does_not_take_the_others_along(site: AnimlServer) -> None:
    loc = {"geometry": {"coordinates": [-119.7, 34.0]}}
    deployments = [None, {"_id": "a", "name": None, "location": loc}, {"_id": "b", "name": "cove", "startDate": 5, "location": loc}]
    site.next_answers = [{"data": {"projects": [{"_id": "isle", "cameraConfigs": [{"_id": "c", "deployments": deployments}]}]}}]
    assert [d.deployment for d in asking(site).deployments()] == ["cove"]


@pytest.mark.parametrize("url", ["", "nonsense", "file:///etc/passwd", "http://[::1?X-Amz-Signature=do-not-tell"])
def test_a_complete_export_without_an_address_has_failed(site: AnimlServer, tmp_path: Path, url: str) -> None:
    with pytest.raises(RemoteError, match="names no address at which it could lie") as caught:
        asking(site).download(SecretStr(url), tmp_path / "x")
    assert caught.value.reason == "failed"


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_no_secret_shows_in_settings_that_are_printed_or_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIML_ID_TOKEN", TOKEN)
    monkeypatch.setenv("ANIML_PASSWORD", PASSWORD)
    settings = load_settings()
    assert settings.id_token.get_secret_value() == TOKEN
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()} {settings.model_dump(mode='json')}"
    assert TOKEN not in shown
    assert PASSWORD not in shown


def test_no_secret_shows_in_logs_not_even_in_those_of_libraries(site: AnimlServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client = asking(site)
        outcome = client.outcome(client.begin_export(ImageFilters()), 10)
        client.download(outcome.url, tmp_path / "export.json")
    assert "urllib3" in {r.name.split(".")[0] for r in caplog.records}
    said = " ".join([*(r.getMessage() for r in caplog.records), repr(outcome), str(outcome), repr(client), repr(vars(client))])
    assert TOKEN not in said
    assert site.signatures[0] not in said


def test_a_server_that_tells_what_it_was_sent_does_not_make_us_tell_it(site: AnimlServer) -> None:
    site.echo_secrets = True
    with pytest.raises(RemoteError, match=r"boom: .*\*\*\*") as caught:
        asking(site).count(ImageFilters())
    assert TOKEN not in str(caught.value)


def test_an_export_that_cannot_be_reached_does_not_tell_its_signed_address(site: AnimlServer, tmp_path: Path) -> None:
    client = asking(site)
    dead = SecretStr("http://127.0.0.1:9/x_coco.json?X-Amz-Signature=do-not-tell")
    with pytest.raises(RemoteError) as caught:
        client.download(dead, tmp_path / "x")
    error: BaseException | None = caught.value
    while error is not None:
        assert "do-not-tell" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
