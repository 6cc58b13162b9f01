"""Only its user commands a Prefect server of ours or its worker: passwords, hosts, origins, and what a run may bring along."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_CORS_ALLOWED_ORIGINS,
    temporary_settings,
)

from animl_pipeline.cli.guarded_prefect_worker import SET_FOLDER, OwnDeployments, check_run, read_own_deployments
from animl_pipeline.cli.prefect_server import allowed_requests, serve_prefect
from animl_pipeline.cli.prefect_server_password import check_password, kept_in_file, kept_password, new_password, password_file
from animl_pipeline.config.settings import DEPLOYMENTS
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.refuse_foreign_requests import refuse_foreign
from animl_pipeline.deploy import release_history

PORT = 4200
OWN = f"http://127.0.0.1:{PORT}"
AUTH = ("team", "the owl flies at night")
EVIL = "https://evil.example"


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    """Prefect's own application as `animl-pipeline server` sets it up; its database is not used."""
    from prefect.server.api.server import create_app

    allowed = allowed_requests(PORT, f"{OWN}/api", f"{OWN}/api", "*")
    origins = {PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ",".join(sorted(allowed.origins))}
    with temporary_settings(origins | {PREFECT_SERVER_API_AUTH_STRING: ":".join(AUTH)}):
        yield refuse_foreign(create_app(ignore_cache=True), allowed)


def asked(app: Any, method: str, path: str, *, auth: tuple[str, str] | None = None, **headers: str) -> httpx.Response:
    """The application's answer to a request for this machine, or for the header Host."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=OWN) as client:
            return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}, auth=auth)

    return asyncio.run(ask())


ATTACKS = [("POST", "/api/flows/"), ("POST", "/api/deployments/"), ("POST", "/api/deployments/1/create_flow_run"), ("POST", "/api/events")]


@pytest.mark.parametrize(("method", "path"), ATTACKS)
def test_the_attack_of_a_web_page_gets_nowhere(app: Any, method: str, path: str) -> None:
    assert asked(app, method, path).status_code == 401
    assert asked(app, method, path, auth=(AUTH[0], "guessed")).status_code == 401
    for foreign in ({"Origin": EVIL}, {"Host": f"evil.example:{PORT}"}, {"Sec_Fetch_Site": "cross-site"}):
        answer = asked(app, method, path, auth=AUTH, **foreign)  # not even with the password
        assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (403, None), foreign
    asks_first = asked(app, "OPTIONS", path, Origin=EVIL, Access_Control_Request_Method="POST")
    assert (asks_first.status_code, asks_first.headers.get("access-control-allow-origin")) == (403, None)


def test_its_own_pages_and_programs_are_answered_with_the_password(app: Any) -> None:
    assert asked(app, "GET", "/api/admin/version", auth=AUTH).status_code == 200
    own = asked(app, "OPTIONS", "/api/flows/", Origin=f"http://localhost:{PORT}", Access_Control_Request_Method="POST")
    assert own.headers["access-control-allow-origin"] == f"http://localhost:{PORT}"
    assert asked(app, "GET", "/api/health", Host="10.0.0.7").status_code == 200
    assert asked(app, "GET", "/api/admin/version", Host="10.0.0.7", auth=AUTH).status_code == 403


def test_a_teams_server_answers_to_the_addresses_of_its_settings_only() -> None:
    allowed = allowed_requests(PORT, "https://prefect.team.org/api", "http://server:4200/api", "https://tools.team.org,*")
    assert allowed.hosts == {"127.0.0.1", "localhost", "::1", "prefect.team.org", "server"}
    assert allowed.origins == {"https://prefect.team.org", "https://tools.team.org"}


@pytest.mark.parametrize(
    ("auth", "code"),
    [
        ("", "password_form"),
        ("secret-without-user", "password_form"),
        (":the owl flies", "password_form"),
        ("team:change-me", "example_password"),
        ("team:ChangeMeToo", "example_password"),
        ("team:short", "short_password"),
    ],
)
def test_a_server_does_not_start_with_a_password_that_everybody_knows(auth: str, code: str) -> None:
    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: auth or None}), pytest.raises(SettingsError) as refused:
        serve_prefect("127.0.0.1", 1)
    assert refused.value.code == code
    assert not auth.partition(":")[2] or auth.partition(":")[2] not in str(refused.value)


def test_a_server_does_not_start_with_the_database_password_of_the_old_example() -> None:
    database = "postgresql+asyncpg://prefect:changemetoo@127.0.0.1:5432/prefect"
    settings = {PREFECT_SERVER_API_AUTH_STRING: ":".join(AUTH), PREFECT_API_DATABASE_CONNECTION_URL: database}
    with temporary_settings(settings), pytest.raises(SettingsError) as refused:
        serve_prefect("127.0.0.1", 1)
    assert refused.value.code == "example_password"


def test_the_password_of_up_is_found_by_this_users_commands_only_while_it_runs(tmp_path: Path) -> None:
    auth, file = new_password(), password_file(tmp_path / "prefect", PORT)
    assert check_password(auth, "X") == auth != new_password()
    file.parent.mkdir()
    file.write_text("of a killed run, readable by all")
    with kept_in_file(auth, file):
        assert file.stat().st_mode & 0o777 == 0o600
        assert kept_password(f"{OWN}/api", file.parent) == kept_password(f"http://localhost:{PORT}/api", file.parent) == auth
        for elsewhere in (f"http://127.0.0.1:{PORT + 1}/api", f"http://prefect.team.org:{PORT}/api", "", "http://["):
            assert kept_password(elsewhere, file.parent) is None
        file.chmod(0o644)
        assert kept_password(f"{OWN}/api", file.parent) is None
    assert not file.exists()
    assert kept_password(f"{OWN}/api", file.parent) is None


SHELL = {"prefect.deployments.steps.run_shell_script": {"script": "touch /tmp/x"}}


def test_the_worker_carries_out_every_deployment_that_is_shipped() -> None:
    own = read_own_deployments(DEPLOYMENTS)
    assert own.entrypoints == {
        "flows.retrain.retrain", "flows.release.release", "flows.release.rollback",
        "flows.start_training_when_validated.watch", "flows.start_training_when_validated.validated", "flows.monitor.monitor",
    }  # fmt: skip
    for entrypoint in own.entrypoints:
        for steps in (None, [], [{SET_FOLDER: {"directory": str(DEPLOYMENTS.parent)}}]):
            check_run({"entrypoint": entrypoint, "pull_steps": steps}, {"command": None, "working_dir": None, "env": dict(own.environment)}, own)


@pytest.mark.parametrize(
    ("deployment", "process", "reason"),
    [
        ({"pull_steps": [SHELL]}, {}, "pull steps"),
        ({"pull_steps": [{SET_FOLDER: {"directory": "/srv"}}, SHELL]}, {}, "pull steps"),
        ({"pull_steps": [{SET_FOLDER: {"directory": "/home/ranger/Downloads"}}]}, {}, "pull steps"),
        ({"pull_steps": [{SET_FOLDER: {"directory": "/srv", "requires": "evil-package"}}]}, {}, "pull steps"),
        ({"entrypoint": "/home/ranger/Downloads/evil.py:flow"}, {}, "entrypoint"),
        ({"entrypoint": None}, {}, "entrypoint"),
        ({"storage_document_id": "0" * 32}, {}, "storage"),
        ({}, {"command": "touch /tmp/x"}, "command"),
        ({}, {"working_dir": Path("/home/ranger/Downloads")}, "working directory"),
        ({}, {"env": {"LD_PRELOAD": "/home/ranger/Downloads/evil.so"}}, "environment"),
        ({}, {"env": {"MALLOC_ARENA_MAX": "2"}}, "environment"),
        ({}, {"env": {"PATH": None}}, "environment"),
    ],
)
def test_the_worker_refuses_a_run_that_brings_more_than_its_own_prefect_yaml_declares(
    deployment: dict[str, Any], process: dict[str, Any], reason: str
) -> None:
    own = OwnDeployments(frozenset({"flows.retrain.retrain"}), frozenset({("MALLOC_ARENA_MAX", "1")}), Path("/srv"))
    good = {"entrypoint": "flows.retrain.retrain", "pull_steps": [{SET_FOLDER: {"directory": "/srv"}}], "storage_document_id": None}
    with pytest.raises(SettingsError) as refused:
        check_run(good | deployment, {"command": None, "working_dir": None, "env": {}} | process, own)
    assert (refused.value.code, refused.value.details["too_much"]) == ("foreign_run", [reason])


def test_the_workers_documented_policy_denies_deleting_what_cannot_be_made_again() -> None:
    page = (DEPLOYMENTS.parent / "docs" / "aws.md").read_text(encoding="utf-8")
    statements = json.loads(re.findall(r"```json\n(.*?)```", page, re.DOTALL)[0])["Statement"]
    bucket = "arn:aws:s3:::animl-pipeline-store/"

    def may_delete(name: str) -> bool:
        about = [
            s["Effect"] for s in statements if "s3:DeleteObject" in s["Action"] and any(fnmatchcase(bucket + name, r) for r in _list(s["Resource"]))
        ]
        return about != [] and "Deny" not in about

    assert may_delete("store/blobs/ab/abc")
    assert may_delete("store/index/crops/1.json")
    assert not may_delete(f"store/{release_history.FOLDER}sci-endpoint/1.json")
    assert not may_delete("store/index/splits/sci/1.json")


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
