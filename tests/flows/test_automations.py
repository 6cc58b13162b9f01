"""The automations on a real Prefect server: messages about runs, and runs whose process died."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Completed, Running

from animl_pipeline.cli.prefect_deployments import put_automations
from animl_pipeline.core.errors import SettingsError
from flows.end_states import STATE_NAMES, end_as
from flows.monitor import DEGRADED_EVENT
from tests.support.endpoint_process import wait_until
from tests.support.paths import ROOT
from tests.support.prefect_server import PREFECT_TEST, call_server, read_run

FILE = ROOT / "deployments" / "automations.yaml"
pytestmark = PREFECT_TEST


@flow(name="release", flow_run_name="release {state}", persist_result=False)
def release_ending_as(state: str) -> None:
    """A run of a flow with the name of ours that ends in a given state."""
    if state == "Failed":
        raise ValueError("expected a bucket, found none")
    return end_as(state, f"the reason for {state}", None)


class Listener:
    """A web server that receives the messages."""

    def __init__(self) -> None:
        heard = self.heard = []  # type: list[dict[str, Any]]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def subjects(self) -> set[str]:
        """The first lines of what came."""
        return {m["title"] for m in self.heard}


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def automations() -> dict[str, dict[str, Any]]:
    there = call_server("POST", "/automations/filter", {})
    assert len({a["name"] for a in there}) == len(there)
    return {a["name"]: a for a in there if a["name"].startswith("animl ")}


def test_messages_of_failed_held_and_released_runs_arrive_where_a_block_says(listener: Listener) -> None:
    assert put_automations(FILE, "") == list(automations()) == ["animl zombies"]
    with pytest.raises(SettingsError) as refused:
        put_automations(FILE, "slack-webhook/nobody")
    assert refused.value.code == "no_block"
    text = {"title": "{{subject}}", "text": "{{body}}"}
    CustomWebhookNotificationBlock(name="rangers", url=listener.address, json_data=text).save("rangers", overwrite=True)
    names = put_automations(FILE, "custom-webhook/rangers")
    kinds = ("asks for approval", "degraded", "failed", "held", "promoted", "released", "zombies")
    assert sorted(names) == [f"animl {kind}" for kind in kinds]
    there = automations()
    assert [a["enabled"] for a in there.values()] == [True] * 7
    put_automations(FILE, "custom-webhook/rangers")
    assert {a["id"] for a in automations().values()} == {a["id"] for a in there.values()}  # updated, not made twice
    states = ("Failed", "Held", "Promoted", "Released")

    def all_arrived() -> bool:  # the server loads new automations after a while, so the runs are repeated until then
        missing = [state for state in states if f"release {state}: release {state}" not in listener.subjects()]
        for state in missing:
            release_ending_as(state, return_state=True)
        degraded = "The model of isle is worse than usual" in listener.subjects()
        if not degraded:
            payload = {"plan": "isle", "headline": "recall of rat", "sentences": ["Recall of rat: usually 0.93"]}
            emit_event(DEGRADED_EVENT, resource={"prefect.resource.id": "animl.model.reef"}, payload=payload)
        return degraded and not missing

    try:
        wait_until(all_arrived, "all five messages arrive", seconds=90)
    finally:
        assert put_automations(FILE, "") == list(automations()) == ["animl zombies"]
    held = next(m for m in listener.heard if m["title"] == "release Held: release Held")
    assert "the reason for Held" in held["text"]


def test_the_automation_for_zombies_knows_every_state_in_which_a_run_ends() -> None:
    zombies = next(a for a in yaml.safe_load(FILE.read_text(encoding="utf-8"))["automations"] if a["name"] == "animl zombies")
    assert {f"prefect.flow-run.{name}" for names in STATE_NAMES.values() for name in names} <= set(zombies["trigger"]["expect"])


@pytest.mark.slow
def test_a_run_without_heartbeats_has_crashed_and_one_that_ended_as_promoted_has_not(tmp_path: Path) -> None:
    automations_file = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    zombies = next(a for a in automations_file["automations"] if a["name"] == "animl zombies")
    zombies["trigger"]["within"] = 10  # the least that Prefect takes
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump({"automations": [zombies]}), encoding="utf-8")
    put_automations(tmp_path / "quick.yaml", "")
    try:
        with get_client(sync_client=True) as client:
            done, dead = (client.create_flow_run(release_ending_as, parameters={"state": "Held"}, state=Running()) for _ in range(2))

            def has_crashed() -> bool:
                return read_run(dead).state_name == "Crashed"

            for run in (done, dead):
                emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run.id}"})
                if run is done:
                    client.set_flow_run_state(done.id, Completed(name="Promoted"), force=True)
            wait_until(has_crashed, "the run without heartbeats is Crashed", seconds=120)
    finally:
        assert put_automations(FILE, "") == list(automations()) == ["animl zombies"]
    assert read_run(done).state_name == "Promoted"
