"""The Animl client: its URL, its sign-in, what it may do, and that no secret ever shows."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.integrations.animl import AnimlClient, ImageFilters
from animl_pipeline.storage.read_remote_files import RemoteError
from tests.support.animl_client import TOKEN, client_of, settings_for
from tests.support.animl_images import DAY, AnimlImage, AnimlObject
from tests.support.animl_server import AnimlServer
from tests.support.cognito_server import CognitoPool, serve_cognito

PASSWORD = "correct horse battery staple"  # noqa: S105
POOL, CLIENT, USER = "us-west-2_AbCdEf123", "client1", "retrainer@example.org"


# -- URL and permissions ---------------------------------------------------------------------------------------------


def test_a_missing_url_names_its_setting() -> None:
    with pytest.raises(SettingsError, match="ANIML_API_URL"):
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
def test_an_unsafe_url_is_refused_before_a_token_is_sent(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        AnimlClient("isle", Settings(api_url=address, id_token=SecretStr(TOKEN)))
    assert caught.value.code == "bad_url"
    assert "secret" not in str(caught.value).replace("secrets", "")


def test_missing_credentials_are_all_named(site: AnimlServer) -> None:
    with pytest.raises(SettingsError) as caught:
        client_of(site, id_token=SecretStr(""), user=USER, cognito_pool=POOL).count_images(ImageFilters())
    assert caught.value.details == {"missing": ["ANIML_ID_TOKEN", "ANIML_PASSWORD", "ANIML_COGNITO_CLIENT"]}
    assert site.request_counts["POST"] == 0


def test_an_expired_ready_token_is_an_error_without_the_token(site: AnimlServer) -> None:
    client = client_of(site)
    assert client.count_images(ImageFilters()) == 30
    site.revoke_tokens_after = 1
    with pytest.raises(SettingsError) as caught:
        client.count_images(ImageFilters())
    assert caught.value.code == "token_expired"
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("project", ["mainland", "isles", "ISLE", "no-such"])
def test_an_unknown_project_or_one_of_others_is_an_error_and_not_a_count_of_0(site: AnimlServer, project: str) -> None:
    site.images.append(AnimlImage("mainland:1", project="mainland", taken=DAY, objects=[AnimlObject("m")]))
    calls = [lambda c: c.count_images(ImageFilters()), lambda c: c.automation_rules(), lambda c: c.deployments()]
    for call in calls:
        with pytest.raises(SettingsError) as caught:
            call(AnimlClient(project, settings_for(site)))
        assert (caught.value.code, caught.value.details["project"]) == ("unknown_project", project)
        assert "such as isle" in str(caught.value)


def test_a_project_is_asked_for_once_by_each_client(site: AnimlServer) -> None:
    client = client_of(site)
    assert [client.count_images(ImageFilters()) for _ in range(3)] == [30] * 3
    assert site.request_counts["projects"] == 1
    site.tokens[TOKEN].clear()
    with pytest.raises(SettingsError):
        client_of(site).count_images(ImageFilters())


def test_a_task_of_another_project_is_not_found(site: AnimlServer) -> None:
    site.tokens[TOKEN].add("mainland")
    task = client_of(site).start_export(ImageFilters())
    with pytest.raises(RemoteError) as caught:
        AnimlClient("mainland", settings_for(site)).wait_for_export(task, 1)
    assert caught.value.reason == "not_found"


def test_only_members_export(site: AnimlServer) -> None:
    with pytest.raises(SettingsError) as caught:
        AnimlClient("mainland", settings_for(site)).start_export(ImageFilters())
    assert (caught.value.code, caught.value.details["project"]) == ("project_forbidden", "mainland")


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
    return client_of(site, **(values | changes))


def test_signing_in_does_not_send_the_password(site: AnimlServer, cognito: CognitoPool) -> None:
    assert service_user(site).count_images(ImageFilters()) == 30
    assert len(cognito.requests) == 2
    assert PASSWORD not in str(cognito.requests)


def test_a_service_user_signs_in_again_when_the_token_expires(site: AnimlServer, cognito: CognitoPool) -> None:
    client = service_user(site)
    site.revoke_tokens_after = 2
    assert [client.count_images(ImageFilters()) for _ in range(4)] == [30] * 4
    assert len(cognito.requests) == 4


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"password": SecretStr("wrong")}, "NotAuthorizedException"),
        ({"cognito_client": "other"}, "ResourceNotFoundException"),
        ({"cognito_pool": "my-pool"}, "bad_pool"),
    ],
)
def test_a_refused_sign_in_says_why_without_the_password(site: AnimlServer, cognito: CognitoPool, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(SettingsError) as caught:
        service_user(site, **changes).count_images(ImageFilters())
    assert caught.value.code == code
    assert caught.value.__cause__ is None
    assert "wrong" not in str(caught.value)


def test_a_second_factor_is_an_error(site: AnimlServer, cognito: CognitoPool) -> None:
    cognito.second_factor = True
    with pytest.raises(SettingsError) as caught:
        service_user(site).count_images(ImageFilters())
    assert caught.value.code == "second_factor"


@pytest.mark.parametrize("copied", [f"{TOKEN}\n", f" {TOKEN}\r\n", f"Bearer {TOKEN}"])
def test_a_token_may_be_copied_with_blanks_and_bearer(site: AnimlServer, copied: str) -> None:
    assert client_of(site, id_token=SecretStr(copied)).count_images(ImageFilters()) == 30


@pytest.mark.parametrize("copied", [f"'{TOKEN}'", f"{TOKEN}\nX-Evil: 1", f"{TOKEN}\N{RIGHT DOUBLE QUOTATION MARK}"])
def test_an_impossible_token_is_an_error_without_the_token(site: AnimlServer, copied: str) -> None:
    with pytest.raises(SettingsError) as caught:
        client_of(site, id_token=SecretStr(copied)).count_images(ImageFilters())
    assert caught.value.code == "bad_token"
    assert TOKEN not in str(caught.value)
    assert site.request_counts["POST"] == 0


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_printed_and_stored_settings_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANIML_ID_TOKEN", TOKEN)
    monkeypatch.setenv("ANIML_PASSWORD", PASSWORD)
    settings = load_settings()
    assert settings.id_token.get_secret_value() == TOKEN
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()} {settings.model_dump(mode='json')}"
    assert TOKEN not in shown
    assert PASSWORD not in shown


def test_logs_hold_no_secret_even_those_of_libraries(site: AnimlServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client = client_of(site)
        done = client.wait_for_export(client.start_export(ImageFilters()), 10)
        client.download(done.url, tmp_path / "export.json")
    assert "urllib3" in {r.name.split(".")[0] for r in caplog.records}
    logged = " ".join([*(r.getMessage() for r in caplog.records), repr(done), str(done), repr(client), repr(vars(client))])
    assert TOKEN not in logged
    assert site.signatures[0] not in logged


def test_a_token_that_the_server_echoes_is_redacted(site: AnimlServer) -> None:
    site.echo_secrets = True
    with pytest.raises(RemoteError, match=r"\*\*\*") as caught:
        client_of(site).count_images(ImageFilters())
    assert TOKEN not in str(caught.value)


def test_a_failed_download_does_not_show_the_signed_url(site: AnimlServer, tmp_path: Path) -> None:
    client = client_of(site)
    dead = SecretStr("http://127.0.0.1:9/x_coco.json?X-Amz-Signature=do-not-tell")
    with pytest.raises(RemoteError) as caught:
        client.download(dead, tmp_path / "x")
    error: BaseException | None = caught.value
    while error is not None:
        assert "do-not-tell" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
