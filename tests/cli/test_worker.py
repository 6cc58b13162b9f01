"""Deployments on a real Prefect server, carried out by a real worker: runs that are cancelled, approved, and continued."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from prefect.states import Cancelling

from animl_pipeline.config import load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.deploy import release_records
from animl_pipeline.deploy.trained_versions import save_report
from animl_pipeline.storage.store import open_store
from tests.support.command_line import COMMAND
from tests.support.endpoint_process import wait_until
from tests.support.local_aws import local_aws_services
from tests.support.packaged_model import colour_plan_data, make_package, make_report
from tests.support.prefect_server import FAST_SERVER, PREFECT_TEST, call_server, read_run
from tests.support.tiny_project import write_plan, write_project

pytestmark = [*PREFECT_TEST, pytest.mark.slow]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def aws(home: Path) -> Iterator[dict[str, str]]:
    """SageMaker and S3 on this machine, with the models' bucket."""
    with local_aws_services(home / "sagemaker", "models") as variables:
        yield variables


@pytest.fixture(scope="module")
def environment(home: Path, prefect: str, aws: dict[str, str]) -> dict[str, str]:
    """The environment of worker and commands."""
    others = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | FAST_SERVER
    prefect_settings = {"PREFECT_API_URL": prefect, "PREFECT_HOME": str(home / "prefect")}
    return others | prefect_settings | aws | {"ANIML_STORE": str(home / "store"), "ANIML_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def deployed(home: Path, environment: dict[str, str]) -> None:
    """All deployments and automations, put on the server twice, because the second time updates them. Between, a schedule is switched on."""
    for again in (False, True):
        done = subprocess.run([*COMMAND, "deploy"], capture_output=True, text=True, cwd=home, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert "has all deployments" in done.stdout
        with get_client(sync_client=True) as client:
            watch = client.read_deployment_by_name("watch/sample")
            if not again:
                client.update_deployment_schedule(watch.id, watch.schedules[0].id, active=True)


@pytest.fixture(scope="module")
def worker(home: Path, environment: dict[str, str], deployed: None) -> Iterator[Path]:
    """The log of a worker of the pool, which runs outside of the checkout."""
    log = home / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen([*COMMAND, "worker"], cwd=home, env=environment, stdout=out, stderr=subprocess.STDOUT)
    yield log
    process.terminate()
    process.wait(timeout=60)


def request_run(plan: Path, deployment_name: str = "retrain/sample") -> FlowRun:
    """A run of a deployment, requested by API."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(deployment_name)
        return client.create_flow_run_from_deployment(deployment.id, parameters={"plan": str(plan)})


def cancel(run: FlowRun) -> None:
    """Cancel a run as the button in Prefect's UI does, and wait for the end of its process."""
    pid = int(str(read_run(run).infrastructure_pid).rpartition(":")[2])
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelling())
    wait_until(lambda: read_run(run).state_name == "Cancelled", "the run is Cancelled", seconds=120)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its process is gone", seconds=60)


def log_of(run: FlowRun) -> str:
    """A run's log, as Prefect's UI shows it."""
    with get_client(sync_client=True) as client:
        return "\n".join(line.message for line in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))))


def test_deploying_puts_every_deployment_and_automation_on_the_server(deployed: None) -> None:
    there = call_server("POST", "/deployments/filter", {})
    found = {(d["entrypoint"].rpartition(".")[2], d["name"], d["parameters"].get("plan")) for d in there}
    assert [(d["name"], s["slug"]) for d in there for s in d["schedules"] if s["active"]] == [("sample", "daily")]
    plans = ("sample", "santa-cruz-island", "channel-islands-lila")
    assert found == {("validated", "on-event", None)} | {(f, p, p) for f in ("retrain", "release", "rollback", "watch", "monitor") for p in plans}
    automations = [a["name"] for a in call_server("POST", "/automations/filter", {})]
    assert [n for n in automations if n.startswith("animl ")] == ["animl zombies"]  # the others only send messages, and no block is set


@pytest.mark.timeout(600)
@pytest.mark.parametrize("of_the_run", [False, True], ids=["deployment", "run"])
def test_no_run_brings_the_worker_commands_of_its_own(home: Path, worker: Path, of_the_run: bool) -> None:
    ours = call_server("GET", "/deployments/name/retrain/sample")
    touched = home / "touched"
    if of_the_run:
        there, wanted = ours["id"], {"job_variables": {"command": f"touch {touched}"}}
    else:
        step = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {touched}"}}
        body = {"name": "evil", "flow_id": ours["flow_id"], "entrypoint": ours["entrypoint"], "work_pool_name": "animl", "pull_steps": [step]}
        there, wanted = call_server("POST", "/deployments/", body)["id"], {}
    made = call_server("POST", f"/deployments/{there}/create_flow_run", {"parameters": {"plan": "sample"}} | wanted)
    with get_client(sync_client=True) as client:
        wait_until(lambda: client.read_flow_run(made["id"]).state_type in TERMINAL_STATES, "the run has ended", seconds=120)
        run = client.read_flow_run(made["id"])
    assert (run.state_name, touched.exists()) == ("Crashed", False), worker.read_text()
    assert "prefect.yaml" in str(run.state and run.state.message)


@pytest.mark.timeout(600)
def test_a_cancelled_training_stops_and_the_next_run_continues_from_its_checkpoint(home: Path, worker: Path) -> None:
    write_project(home / "island")
    network = {"select": "validation", "backbone": "tf_efficientnet_lite0", "weights": "none"}
    endless = network | {"epochs": 5000, "head_epochs": 0, "batch_size": 16, "checkpoint_steps": 1}
    plan = write_plan(home / "island", train=endless)
    first = request_run(plan)
    wait_until(lambda: list((home / "store").rglob("checkpoint.ckpt")) or read_run(first).state.is_final(), worker.read_text(), seconds=300)  # type: ignore[union-attr]
    cancel(first)
    assert "training continues" not in log_of(first)
    second = request_run(plan)
    wait_until(lambda: "training continues after step" in log_of(second), "the second run goes on from the checkpoint", seconds=300)
    cancel(second)


@pytest.mark.timeout(600)
def test_a_release_that_waits_for_approval_has_no_process_and_goes_on_when_it_is_approved(home: Path, worker: Path) -> None:
    store = open_store(Settings(store=str(home / "store")))
    save_report(make_report(make_package(store, home, "v1"), store, verdict="promote"), store)
    plan = home / "colours.yaml"
    plan.write_text(yaml.safe_dump(colour_plan_data(approval="required")), encoding="utf-8")
    run = request_run(plan, "release/sample")
    wait_until(lambda: read_run(run).state_name in {"Suspended", "Failed", "Crashed"}, "the release asks", seconds=120)
    assert read_run(run).state_name == "Suspended", worker.read_text()
    pid = int(str(read_run(run).infrastructure_pid).rpartition(":")[2])
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its process is gone", seconds=60)
    answer = {"run_input": {"approve": True, "name": "ranger", "note": "read it"}}
    assert call_server("POST", f"/flow_runs/{run.id}/resume", answer)["status"] == "ACCEPT"
    wait_until(lambda: read_run(run).state_name in {"Released", "Failed", "Crashed"}, "the release goes on", seconds=180)
    assert read_run(run).state_name == "Released", worker.read_text()
    (record,) = release_records(load_plan(plan), store)
    assert record.approval is not None
    assert (record.approval.by, record.version, record.state) == ("ranger", "v1", "done")
