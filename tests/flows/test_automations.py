"""What Prefect's server does by itself: messages that arrive, and runs that nobody works at any more."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Completed, Running

from animl_pipeline.core.errors import SettingsError
from flows.automations import put_automations
from flows.run_states import NAMES, ended
from tests.support.endpoint_process import until
from tests.support.paths import ROOT
from tests.support.prefect_server import read_run

FILE = ROOT / "deployments" / "automations.yaml"
pytestmark = [
    pytest.mark.prefect,
    pytest.mark.usefixtures("prefect"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@flow(name="release", flow_run_name="release {what}", persist_result=False)
def ends(what: str) -> None:
    """A run by the name of ours that ends as it is told."""
    if what == "Failed":
        raise ValueError("expected a bucket, found none")
    return ended(what, f"the reason for {what}", None)


class Listener:
    """A web address that messages go to."""

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


def automations(address: str) -> dict[str, dict[str, Any]]:
    there = requests.post(f"{address}/automations/filter", json={}, timeout=30).json()
    assert len({a["name"] for a in there}) == len(there)
    return {a["name"]: a for a in there if a["name"].startswith("animl ")}


def test_messages_of_failed_held_and_released_runs_arrive_where_a_block_says(prefect: str, listener: Listener) -> None:
    names = put_automations(FILE, "")
    assert {"animl zombies", "animl failed", "animl held", "animl promoted", "animl asks for approval", "animl released"} == set(names)
    there = automations(prefect)
    assert [a["type"] for name in names[1:] for a in there[name]["actions"]] == ["do-nothing"] * 5
    with pytest.raises(SettingsError, match="ANIML_NOTIFY: expected a block that the Prefect server knows"):
        put_automations(FILE, "slack-webhook/nobody")
    text = {"title": "{{subject}}", "text": "{{body}}"}
    CustomWebhookNotificationBlock(name="rangers", url=listener.address, json_data=text).save("rangers", overwrite=True)
    put_automations(FILE, "custom-webhook/rangers")
    assert {a["id"] for a in automations(prefect).values()} == {a["id"] for a in there.values()}  # renewed, not made twice
    told = ("Failed", "Held", "Promoted", "Released")

    def all_arrived() -> bool:  # the server takes new automations up in its own time, so the runs are repeated until then
        missing = [what for what in told if f"release {what}: release {what}" not in listener.subjects()]
        for what in missing:
            ends(what, return_state=True)
        return not missing

    try:
        until(all_arrived, "all four messages arrive", seconds=90)
    finally:
        put_automations(FILE, "")
    held = next(m for m in listener.heard if m["title"] == "release Held: release Held")
    assert "the reason for Held" in held["text"]


def test_every_way_to_end_is_known_to_the_automation_for_runs_without_a_sign_of_life() -> None:
    zombies = next(a for a in yaml.safe_load(FILE.read_text(encoding="utf-8"))["automations"] if a["name"] == "animl zombies")
    assert {f"prefect.flow-run.{name}" for names in NAMES.values() for name in names} <= set(zombies["trigger"]["expect"])


@pytest.mark.slow
def test_a_run_without_a_sign_of_life_has_crashed_and_one_that_ended_under_a_name_of_its_own_has_not(prefect: str, tmp_path: Path) -> None:
    told = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    zombies = next(a for a in told["automations"] if a["name"] == "animl zombies")
    zombies["trigger"]["within"] = 10  # the least that Prefect takes
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump({"automations": [zombies]}), encoding="utf-8")
    put_automations(tmp_path / "quick.yaml", "")
    try:
        with get_client(sync_client=True) as client:
            done, dead = (client.create_flow_run(ends, parameters={"what": "Held"}, state=Running()) for _ in range(2))

            def given_up() -> bool:
                return read_run(dead).state_name == "Crashed"

            for run in (done, dead):
                emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run.id}"})
                if run is done:
                    client.set_flow_run_state(done.id, Completed(name="Promoted"), force=True)
            until(given_up, "the run without heartbeats is Crashed", seconds=120)
    finally:
        put_automations(FILE, "")
    assert read_run(done).state_name == "Promoted"
