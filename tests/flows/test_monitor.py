"""The flow monitor and its command: states, one event for each alarm, a second run that changes nothing, and a kill in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from animl_pipeline.config import find_plan, load_plan
from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.errors import PlanError
from animl_pipeline.deploy.release_history import close_record, new_record, write_record
from animl_pipeline.storage.store import open_store
from flows.monitor import event_id, monitor
from flows.retrain import retrain
from tasks.monitor import find_new_alarms, find_served_versions
from tasks.store_and_data_paths import resolve_run_paths
from tests.support.animl_images import AnimlImage, AnimlLabel, AnimlObject
from tests.support.animl_server import PAGE, AnimlServer, serve_animl
from tests.support.command_line import COMMAND
from tests.support.endpoint_process import wait_until
from tests.support.paths import ROOT
from tests.support.prefect_server import PREFECT_TEST, call_server, send_remaining_events

pytestmark = PREFECT_TEST
NOW = datetime.now(UTC)
SINCE = NOW - timedelta(days=200)


def rat(i: int, days: float, right: bool) -> AnimlImage:
    """An image of a rat that people reviewed at once."""
    taken = SINCE + timedelta(days=days)
    answer = AnimlLabel("rat" if right else "fox", "isle", "1.0", 0.9, validated=right, date=taken, labelled=taken)
    truth = [] if right else [AnimlLabel("rat", validated=True, date=taken)]
    image = AnimlImage(f"isle:{i:032x}", camera=f"cam{i % 5}", taken=taken, added=taken, deployment=f"Site {i % 5}")
    image.objects = [AnimlObject(f"{i:024x}", labels=[answer, *truth])]
    return image


@pytest.fixture
def site() -> Iterator[AnimlServer]:
    """150 days with 5 % mistakes."""
    with serve_animl([rat(i, i, i % 20 > 0) for i in range(150)]) as site:
        yield site


@pytest.fixture
def plan(tmp_path: Path, site: AnimlServer, monkeypatch: pytest.MonkeyPatch) -> str:
    content: dict[str, Any] = {
        "model": "isle",
        "sources": [{"name": "isle", "export": "animl://isle", "images": "images"}],
        "labels": {"classes": {"fox": ["fox"], "rat": ["rat"]}},
        "thresholds": {"invasive": ["rat"]},
        "monitor": {"since": str(SINCE.date()), "reference_sequences": 50, "drop": 0.3, "recent_days": 100, "start_training": True},
    }
    (tmp_path / "isle.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    settings = {"STORE": tmp_path / "store", "PLANS": tmp_path, "API_URL": site.url, "ID_TOKEN": "token-of-a-service-user", "POLL_S": 0.01}
    for key, value in settings.items():
        monkeypatch.setenv(f"ANIML_{key}", str(value))
    return "isle"


def degraded_events() -> list[dict[str, Any]]:
    """The events that the server has of the plan's model."""
    send_remaining_events()
    wanted = {"event": {"name": ["animl.model.degraded"]}, "resource": {"id": ["animl.model.isle"]}}
    found: list[dict[str, Any]] = call_server("POST", "/events/filter", {"filter": wanted})["events"]
    return found


def test_a_healthy_model_degrades_and_the_event_is_sent_once(plan: str, site: AnimlServer) -> None:
    training = cast("UUID", cast("Any", retrain).to_deployment(name=plan).apply())
    healthy = monitor(plan, return_state=True)
    assert (healthy.name, healthy.type.value) == ("Healthy", "COMPLETED")
    again = monitor(plan, return_state=True)
    assert again.result() == healthy.result()
    site.images += [rat(1000 + i, 150 + i / 4, i % 2 == 0) for i in range(100)]  # half of the rats are called foxes
    for image in site.images[150:]:
        image.added = NOW
    degraded = monitor(plan, return_state=True)
    assert degraded.name == "Degraded"
    assert monitor(plan, return_state=True).name == "Degraded"
    wait_until(lambda: bool(degraded_events()), "the event arrives", seconds=60)
    (event,) = degraded_events()
    with get_client(sync_client=True) as client:
        (started,) = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[training])))
    assert started.parameters["plan"] == plan
    assert event["payload"]["alarms"] == list(degraded.result().lasting)
    assert Path(degraded.result().page).read_text(encoding="utf-8").count("<section>") >= 7


def test_the_history_says_which_version_served_when_and_a_plan_of_files_is_refused(plan: str, tmp_path: Path) -> None:
    checked, paths, store = load_plan(find_plan(plan, tmp_path)), resolve_run_paths(), open_store(load_settings())
    base = checked.release.endpoints("isle")[0].base_name
    shared = {"model": "isle", "base_name": base, "endpoint": base, "endpoint_config": "c", "previous_config": None, "sagemaker_model": "isle-1"}
    for version, state in (("1.0", "done"), ("2.0", "rolled_back"), ("3.0", "done")):
        record = write_record(new_record("release", version=version, package=None, **shared), store)
        close_record(record, state, store)  # type: ignore[arg-type]
    served = find_served_versions.fn(checked, paths)
    assert [version for _, version in served] == ["unknown", "1.0", "3.0"]  # monitor.since lies before the first release
    without = checked.model_copy(update={"monitor": checked.monitor.model_copy(update={"since": None})})
    assert [version for _, version in find_served_versions.fn(without, paths)] == ["1.0", "3.0"]
    (tmp_path / "files.yaml").write_text((tmp_path / "isle.yaml").read_text().replace("animl://isle", "export.json"), encoding="utf-8")
    with pytest.raises(PlanError) as refused:
        monitor("files")
    assert refused.value.code == "no_project"


@pytest.mark.slow
def test_a_run_that_is_killed_between_the_event_and_its_note_sends_no_second_one(plan: str, prefect: str, site: AnimlServer, tmp_path: Path) -> None:
    site.images += [rat(1000 + i, 150 + i / 4, i % 2 == 0) for i in range(100)]
    file = tmp_path / "isle.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("start_training: true", "start_training: false"), encoding="utf-8")
    killed = """
import os, signal, sys
from flows import monitor
class Killed:
    def submit(*_): os.kill(os.getpid(), signal.SIGKILL)
monitor.tasks.remember_alarm = Killed()
monitor.monitor(sys.argv[1])
"""
    environment = os.environ | {"PREFECT_API_URL": prefect}
    done = subprocess.run([sys.executable, "-c", killed, plan], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert find_new_alarms.fn(cast("Any", monitor(plan)), resolve_run_paths()) == ()
    (event,) = degraded_events()
    assert event["id"] == str(event_id("isle", event["payload"]["alarms"][0]))


@pytest.mark.slow
def test_the_command_prints_the_state_and_the_page(plan: str, prefect: str) -> None:
    environment = os.environ | {"PREFECT_API_URL": prefect}
    done = subprocess.run([*COMMAND, "monitor", plan], capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "isle: Healthy" in done.stdout
    page = next(line.removeprefix("page: ") for line in done.stdout.splitlines() if line.startswith("page: "))
    assert Path(page).exists()


@pytest.mark.slow
def test_a_killed_run_asks_again_only_for_the_window_in_hand(plan: str, prefect: str, site: AnimlServer, tmp_path: Path) -> None:
    site.images = [rat(i, i / 100, i % 20 > 0) for i in range(12_000)]  # several windows
    environment = os.environ | {"PREFECT_API_URL": prefect}
    command = [*COMMAND, "monitor", plan]
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pages, pages_of_window = 12_000 // PAGE, 5000 // PAGE
    wait_until(lambda: process.poll() is not None or site.request_counts["images"] > pages * 0.7, "most pages are asked for", seconds=200)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    asked = site.request_counts["images"]
    done = subprocess.run([*COMMAND, "monitor", plan], capture_output=True, text=True, check=False, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    assert site.request_counts["images"] - asked <= pages - asked + pages_of_window + 10  # each window ends with a page of its own
    assert "isle" in done.stdout
