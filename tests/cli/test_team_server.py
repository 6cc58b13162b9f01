"""A team's server as docker/compose.yaml sets it up, without Docker: Postgres, a password, a worker, and all of them killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from animl_pipeline.config.settings import Settings
from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset
from tests.project.test_docs import commands
from tests.support.endpoint_process import wait_until
from tests.support.team_server import AUTH, COMPOSE, EXAMPLE, ROOT, Team, compose_services, kill, postgres_tools, read_env_file
from tests.support.tiny_project import write_plan, write_project

TOOLS = postgres_tools()
MINUTES = 60.0

on_postgres = pytest.mark.skipif(TOOLS is None, reason="expected Postgres (Debian's postgresql), found no initdb")


def test_the_compose_file_is_valid_and_its_example_sets_every_variable() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    example = read_env_file(EXAMPLE)
    services = compose_services(example | {"PREFECT_AUTH": ":".join(AUTH), "POSTGRES_PASSWORD": "a1b2c3"})
    assert set(services) == {"database", "server", "deployments", "worker", "reports"}
    assert "$" not in json.dumps(services)
    for missing in ({}, example, example | {"PREFECT_AUTH": ":".join(AUTH)}):  # no password comes with it
        with pytest.raises(KeyError, match=r"in team\.env"):
            compose_services(missing)
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
    passed_on = {name for service in services.values() for name in service["environment"] if name.startswith("ANIML_")}
    assert passed_on <= {f"ANIML_{name.upper()}" for name in Settings.model_fields}
    accounts = {"ANIML_ROLE_ARN", "ANIML_ENDPOINT_IMAGE", "ANIML_TRAINING_IMAGE", "ANIML_TRAINING_ROLE_ARN", "ANIML_USER", "ANIML_API_URL"}
    assert services["worker"]["environment"].keys() >= accounts
    for service in ("deployments", "worker"):  # both read the plans of the host
        assert services[service]["environment"]["ANIML_PLANS"] == "/plans"
        assert f"{example['PLANS']}:/plans:ro" in services[service]["volumes"]
    assert (COMPOSE.parent / example["PLANS"] / "sample.yaml").is_file()
    assert read_env_file(EXAMPLE).keys() <= set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Postgres and Prefect's server, running; the synthetic data set, and its shipped plan with more frequent checkpoints."""
    assert TOOLS is not None
    folder = tmp_path_factory.mktemp("team")
    write_synthetic_dataset(folder / "data" / "sample")
    plan = yaml.safe_load((ROOT / "deployments/plans/sample.yaml").read_text(encoding="utf-8"))
    plan["train"] |= {"checkpoint_steps": 2}
    shutil.copytree(ROOT / "deployments/plans", folder / "plans")
    (folder / "plans" / "sample.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    made = Team(folder, TOOLS, ANIML_DATA=str(folder / "data"), ANIML_PLANS=str(folder / "plans"))
    with made.database.running():
        try:
            made.start_server()
            yield made
        finally:
            made.close()


@pytest.fixture(scope="module")
def deployed(team: Team) -> Team:
    """With all deployments, put there as the compose file's service does it."""
    putting = team.start("deployments")
    assert putting.wait(timeout=5 * MINUTES) == 0, team.logs("deployments")
    assert "has all deployments" in team.logs("deployments")
    return team


def request_run(team: Team, deployment: str = "retrain/sample", plan: str = "sample", **overrides: int) -> str:
    """Request a run of a deployment by API. Returns its id."""
    there = team.call(f"deployments/name/{deployment}")["id"]
    parameters = {"plan": plan} | ({"overrides": overrides} if overrides else {})
    return str(team.call(f"deployments/{there}/create_flow_run", {"parameters": parameters})["id"])


def state(team: Team, run: str) -> str:
    """A run's state by name; "" while the server is away."""
    try:
        return str(team.call(f"flow_runs/{run}")["state"]["name"])
    except OSError:
        return ""


def wait_for(team: Team, run: str, *names: str, minutes: float = 15) -> str:
    """Until a run is in one of the states."""
    wait_until(lambda: state(team, run) in {*names, "Failed", "Crashed"}, f"{run} is {' or '.join(names)}", seconds=minutes * MINUTES)
    found = state(team, run)
    assert found in names, f"{found}: {team.call(f'flow_runs/{run}')['state']['message']}\n{log_of(team, run)}"
    return found


def log_of(team: Team, run: str) -> str:
    """A run's log, as Prefect's UI shows it."""
    return "\n".join(line["message"] for line in all_rows(team, "logs", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}))


def all_rows(team: Team, kind: str, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """All rows of a kind; Prefect answers at most 200 at a time."""
    rows: list[dict[str, Any]] = []
    while page := team.call(f"{kind}/filter", wanted | {"offset": len(rows), "limit": 200}):
        rows += page
    return rows


def tasks_of(team: Team, run: str) -> dict[str, str]:
    """Step → its state, by name."""
    found = team.call("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {re.sub(r"-[0-9a-f]{3}$", "", task["name"]): task["state"]["name"] for task in found}


def checkpoint(team: Team) -> Path | None:
    return next((team.folder / "store").rglob("checkpoint.ckpt"), None)


def processes_of(team: Team) -> list[int]:
    """The processes that carry out flow runs of this team's worker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if str(team.folder).encode() in environment and b"PREFECT__FLOW_RUN_ID=" in environment and b"prefect" in command:
            found.append(int(folder.name))
    return found


STEPS = {"export island", "images island", "labels", "detections", "crops", "splits", "training", "calibration", "evaluation", "package"}


@on_postgres
@pytest.mark.slow
@pytest.mark.timeout(20 * MINUTES)
def test_without_the_password_only_health_answers_and_a_command_says_what_to_set(team: Team) -> None:
    for path, body in (("flow_runs/filter", {}), ("events", []), ("deployments/filter", {}), ("logs/filter", {})):
        assert team.ask(path, body, auth=None).status_code == 401, path
        assert team.ask(path, body, auth=(AUTH[0], "guessed")).status_code == 401, path
    assert team.ask("flow_runs/filter", {}).status_code == 200
    assert team.ask("health", auth=None).status_code == 200
    for foreign in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):  # not even with the password
        assert requests.post(f"{team.address}/flow_runs/filter", json={}, auth=AUTH, headers=foreign, timeout=60).status_code == 403
    environment = {k: v for k, v in team.environment("deployments").items() if k != "PREFECT_API_AUTH_STRING"}
    for arguments in (["deploy"], ["notify", "sample"]):
        line = [sys.executable, "-m", "animl_pipeline.cli.main", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        assert done.returncode != 0
        assert "PREFECT_API_AUTH_STRING" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


@on_postgres
@pytest.mark.slow
@pytest.mark.timeout(20 * MINUTES)
def test_each_way_to_start_a_training_that_the_docs_show_starts_it_once(deployed: Team) -> None:
    team = deployed
    deployment = team.call("deployments/name/retrain/santa-cruz-island")["id"]

    def trainings() -> list[dict[str, Any]]:
        runs = team.call("flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
        return [run for run in runs if not run["auto_scheduled"]]

    def output_of(command: str) -> str:
        done = subprocess.run(
            ["/bin/bash", "-c", command], capture_output=True, text=True, env=team.environment("deployments"), cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answered(runs: int) -> bool:
        found = team.call("flow_runs/filter", {"flows": {"name": {"any_": ["validated"]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})
        return len(found) == runs

    shown = [c for c in commands(ROOT / "docs" / "operate.md") if c.startswith("curl") and "/resume" not in c]
    here = {"http://127.0.0.1:4200/api": team.address, "/ID/": f"/{deployment}/", "curl ": "curl --silent "}
    for there, instead in here.items():
        shown = [command.replace(there, instead) for command in shown]
    event, by_name, create = shown
    worker = team.start("worker")
    output_of(event)
    wait_until(lambda: answered(1), "the event started a run of validated/on-event", seconds=5 * MINUTES)
    (training,) = trainings()
    assert training["parameters"]["plan"] == "santa-cruz-island"
    output_of('animl-pipeline notify santa-cruz-island --batch "2026-11-22 night"')  # of the same batch
    wait_until(lambda: answered(2), "the second event, too", seconds=5 * MINUTES)
    assert len(trainings()) == 1
    assert json.loads(output_of(by_name))["id"] == deployment
    first, second = json.loads(output_of(create)), json.loads(output_of(create))
    assert first["id"] == second["id"]
    assert len(trainings()) == 2
    kill(worker)
    for run in trainings():
        team.call(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


@on_postgres
@pytest.mark.slow
@pytest.mark.timeout(40 * MINUTES)
def test_a_server_killed_in_the_middle_of_a_training_loses_nothing(deployed: Team) -> None:
    team = deployed
    worker = team.start("worker")
    run = request_run(team)
    wait_until(lambda: checkpoint(team) or state(team, run) in {"Failed", "Crashed"}, "the training has a checkpoint", seconds=15 * MINUTES)
    before = checkpoint(team)
    assert before is not None, log_of(team, run)
    kill(team.servers[-1])
    seen = before.stat().st_mtime_ns
    wait_until(lambda: not before.exists() or before.stat().st_mtime_ns > seen, "the training goes on without the server", seconds=5 * MINUTES)
    assert not team.answers()
    team.start_server()
    wait_for(team, run, "Promoted", "Held", "NeedMoreData")
    assert set(tasks_of(team, run)) >= STEPS
    assert set(tasks_of(team, run).values()) == {"Completed"}
    made = [f"{step.split()[0]}: made in" for step in STEPS]
    wait_until(
        lambda: all(line in log_of(team, run) for line in made), "the log is whole", seconds=2 * MINUTES
    )  # its last lines come after the state
    assert worker.poll() is None, team.logs("worker")
    kill(worker)


@on_postgres
@pytest.mark.slow
@pytest.mark.timeout(40 * MINUTES)
def test_a_worker_killed_with_its_run_is_seen_and_the_next_run_goes_on_while_a_release_waits_for_a_person(deployed: Team) -> None:
    team = deployed
    worker = team.start("worker")
    waiting = waiting_release(team)
    impatient(team, seconds=60)
    run = request_run(team, epochs=400, seed=1)
    wait_until(lambda: checkpoint(team) or state(team, run) in {"Failed", "Crashed"}, "the training has a checkpoint", seconds=15 * MINUTES)
    assert checkpoint(team) is not None, log_of(team, run)
    running = processes_of(team)
    assert running
    kill(worker)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):  # it was in the worker's group
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: state(team, run) == "Crashed", "the zombie is seen", seconds=10 * MINUTES)
    assert "No heartbeat" in team.call(f"flow_runs/{run}")["state"]["message"]
    assert state(team, waiting) == "Suspended"  # it has been silent for longer
    again = team.start("worker")
    second = request_run(team, epochs=400, seed=1)
    wait_until(
        lambda: "training continues after step" in log_of(team, second) or state(team, second) in {"Failed", "Crashed"}, "it goes on", 10 * MINUTES
    )
    assert "training continues after step" in log_of(team, second)
    done = tasks_of(team, second)
    assert {step for step, name in done.items() if name == "Cached"} >= {"export island", "images island", "detections", "crops", "splits"}
    team.call(f"flow_runs/{second}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(team, second, "Cancelled")
    kill(again)


def waiting_release(team: Team) -> str:
    """A release that a person must approve, suspended; its run."""
    plan = write_project(team.folder / "island")
    lenient = {"min_examples": 1, "min_locations": 1, "max_macro_f1_drop": 1.0, "min_macro_f1": 0.0}
    write_plan(plan.parent, gate=lenient, release={"memory_mb": 1024, "max_concurrency": 2, "timeout_s": 60, "approval": "required"})
    wait_for(team, request_run(team, plan=str(plan)), "AwaitingApproval")
    run = request_run(team, "release/sample", plan=str(plan))
    wait_for(team, run, "Suspended")
    return run


def impatient(team: Team, seconds: int) -> None:
    """Have the automation for zombies wait less long than it comes with."""
    (zombies,) = (a for a in team.call("automations/filter", {}) if a["name"] == "animl zombies")
    wanted = {name: zombies[name] for name in ("name", "description", "enabled", "trigger", "actions")}
    wanted["trigger"] |= {"within": seconds}
    answer = requests.put(f"{team.address}/automations/{zombies['id']}", json=wanted, auth=AUTH, timeout=60)
    assert answer.ok, answer.text


@on_postgres
@pytest.mark.slow
@pytest.mark.timeout(30 * MINUTES)
def test_a_lost_database_comes_back_from_its_dump(deployed: Team) -> None:
    team = deployed

    def all_of_it() -> dict[str, Any]:
        kinds = ("flow_runs", "task_runs", "deployments", "automations", "artifacts", "logs", "work_pools", "block_documents")
        return {kind: sorted(json.dumps(_lasting(one), sort_keys=True) for one in all_rows(team, kind, {})) for kind in kinds}

    request_run(team)  # no worker takes it: it is in the dump as a run that waits
    kept, before = team.database.back_up(), all_of_it()
    kill(team.servers[-1])
    team.database.restore(kept)
    team.start_server()
    after = all_of_it()
    assert before["deployments"]
    assert before["flow_runs"]
    for kind, rows in before.items():
        assert after[kind] == rows, kind


PASSING = {"updated", "estimated_run_time", "estimated_start_time_delta", "status", "last_polled", "state", "state_name", "state_id"}
"""What of a row changes by itself while a server runs."""


def _lasting(node: Any) -> Any:
    """A row without what changes by itself; lists of words, which the server keeps as sets, in order."""
    if isinstance(node, dict):
        return {name: _lasting(of) for name, of in node.items() if name not in PASSING}
    if isinstance(node, list):
        return sorted(node) if all(isinstance(of, str) for of in node) else [_lasting(of) for of in node]
    return node
