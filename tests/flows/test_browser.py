"""The steps of docs/biologist.md in a real browser: a training from the form, its artifacts, an approval, and the endpoint's answers.

``make screenshots`` saves the screenshots for the docs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from animl_pipeline.config import load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.release_and_reference_types import ReferencePrediction
from animl_pipeline.deploy import invoke_endpoint, release_records
from animl_pipeline.deploy.trained_versions import read_latest_report
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, local_sagemaker
from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset
from animl_pipeline.storage.store import open_store
from tests.support.browser import Visitor, chromium
from tests.support.endpoint_process import wait_until
from tests.support.paths import ROOT
from tests.support.team_server import free_port, start_up, stop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="expected playwright (the dev extra), found none"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="expected a chromium (Debian's), found none"),
]
MINUTES = 60.0


class Server:
    """A server on one machine, as `animl-pipeline up` starts it, with the synthetic data set and a plan whose releases need an approval."""

    def __init__(self, folder: Path, cloud: dict[str, str]) -> None:
        self.folder = folder
        write_synthetic_dataset(folder / "data" / "sample")
        data = yaml.safe_load((ROOT / "deployments/plans/sample.yaml").read_text(encoding="utf-8"))
        data["release"] |= {"approval": "required"}
        data["train"] |= {"epochs": 2}  # the form names the same number, so the run is no trial
        (folder / "plans").mkdir()
        self.file = folder / "plans" / "sample.yaml"
        self.file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ANIML_", "AWS_"))}
        locations = {"ANIML_STORE": "store", "ANIML_DATA": "data", "ANIML_PLANS": "plans", "PREFECT_HOME": "prefect"}
        aws = cloud | {"ANIML_ROLE_ARN": ROLE, "ANIML_ENDPOINT_IMAGE": IMAGE, "ANIML_MODELS_BUCKET": "browser"}
        self.environment = ours | aws | {name: str(folder / location) for name, location in locations.items()} | {"OMP_NUM_THREADS": "1"}
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.password = ""
        self.images = ROOT / os.environ["SCREENSHOTS"] if "SCREENSHOTS" in os.environ else folder / "images"
        self.images.mkdir(exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        """`animl-pipeline up`, once it prints the UI's address."""
        up, self.password = start_up(self.folder, self.port, self.environment)
        return up

    @property
    def reports(self) -> str:
        """The address of the report server, as `up` prints it."""
        return re.search(r"^the reports: (\S+)", (self.folder / "up.log").read_text(), re.MULTILINE)[1]  # type: ignore[index]

    @property
    def auth(self) -> tuple[str, str]:
        """User and password of the server."""
        user, _, password = self.password.partition(":")
        return user, password

    def newest(self, flow: str) -> dict[str, Any]:
        """The latest run of a flow, from the API."""
        wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
        runs = requests.post(f"{self.address}/api/flow_runs/filter", json=wanted, auth=self.auth, timeout=60)
        found: dict[str, Any] = runs.json()[0]
        return found

    def deployment(self, name: str) -> str:
        """The id of a deployment, such as retrain/sample."""
        found = requests.get(f"{self.address}/api/deployments/name/{name}", auth=self.auth, timeout=60)
        return str(found.json()["id"])

    def wait(self, flow: str, *names: str) -> dict[str, Any]:
        """Wait until a flow's latest run is in one of the states. Returns the run."""
        wait_until(lambda: self.newest(flow)["state"]["name"] in {*names, "Failed", "Crashed"}, f"{flow} is {names}", seconds=30 * MINUTES)
        run = self.newest(flow)
        assert run["state"]["name"] in names, run["state"]["message"]
        return run


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import boto3

    with local_sagemaker(tmp_path / "cloud") as addresses:
        made = Server(tmp_path, addresses.variables())
        for name, value in made.environment.items():
            if name.startswith("AWS_") or name == "ANIML_STORE":
                monkeypatch.setenv(name, value)
        boto3.setup_default_session()
        boto3.client("s3").create_bucket(Bucket="browser", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        up = made.start()
        try:
            yield made
        finally:
            stop(up)


def test_a_person_trains_and_approves_in_the_browser_and_the_endpoint_serves_the_new_version(server: Server) -> None:
    with chromium("--disable-gpu") as browser:
        person = Visitor(browser, server.address, server.images)
        person.signs_in(server.password)
        starts_a_training(person, server)
        watches_it(person, server)
        server.wait("retrain", "AwaitingApproval")
        reads_what_came_of_it(person, server)
        reads_the_report(Visitor(browser, server.reports, server.images, auth=server.auth), server)
        asks_for_the_release(person, server)
        looks_on_a_phone(Visitor(browser, server.address, server.images, phone=True), server)
        approves(person, server)
        assert person.other_hosts == []
    plan, store = load_plan(server.file), open_store(Settings())
    report = read_latest_report(plan.model, store)
    (record,) = release_records(plan, store)
    assert (record.version, record.state) == (report.version, "done")
    assert record.approval is not None
    assert (record.approval.by, record.approval.note, record.approval.given_in) == ("the ranger", "looked at the lizards", "prefect")
    reference = ReferencePrediction.model_validate(json.loads(store.path(report.package, "reference_predictions.json").read_bytes())[0])
    answer = invoke_endpoint(plan.endpoint_name(), store.path(report.package, f"reference_predictions/{reference.image}").read_bytes(), reference.box)
    assert answer == pytest.approx(reference.probabilities, abs=plan.release.tolerance)


def starts_a_training(person: Visitor, server: Server) -> None:
    person.shot("deployments", "retrain", "rollback", "Ready")
    person.open_run_form(server.deployment("retrain/sample"))
    assert person.page.locator("textarea").first.input_value() == "sample"
    person.presses("int")  # a field of Epochs in place of "None"
    person.page.locator("input[type=number]").first.fill("2")
    person.shot("form", "Epochs (Optional)")
    person.submits()
    wait_until(lambda: server.newest("retrain")["state"]["name"] == "Running", "the training runs", seconds=5 * MINUTES)
    run = server.newest("retrain")
    assert run["parameters"]["plan"] == "sample"
    assert run["parameters"]["overrides"]["epochs"] == 2


def watches_it(person: Visitor, server: Server) -> None:
    person.opens("runs")
    person.page.get_by_role("link", name="retrain sample").first.click()
    person.clicks("Artifacts")
    person.shot("running", "progress-training-steps")


def reads_what_came_of_it(person: Visitor, server: Server) -> None:
    run = f"runs/flow-run/{server.newest('retrain')['id']}"
    for artifact, shown in (
        ("splits", "train"),
        ("kept-and-dropped", "images island"),
        ("scores", "lizard"),
        ("verdict", "every class has at least 5 test examples from 2 locations"),
    ):
        person.opens(f"{run}?tab=Artifacts")
        person.clicks("Artifacts")
        person.follows_below(artifact)
        person.shot(artifact, shown)
    for artifact in ("learning-curves", "confusion"):
        person.opens(f"{run}?tab=Artifacts")
        person.clicks("Artifacts")
        person.follows_below(artifact)
        image = person.page.locator("img[src^='data:image/png']").first
        image.wait_for()
        assert image.evaluate("image => image.naturalWidth") > 200
        person.shot(artifact)


def reads_the_report(person: Visitor, server: Server) -> None:
    run = server.newest("retrain")
    linked = run["state"]["message"].rpartition("the report: ")[2]
    assert linked.startswith(f"{server.reports}/steps/evaluation/")
    person.opens(linked.removeprefix(f"{server.reports}/"))
    person.shot("report", "The worst mistakes")
    person.opens("")
    person.page.locator(f"a[href='{linked.removeprefix(server.reports)}']").click()
    person.sees("The worst mistakes", first=False)
    assert person.other_hosts == []


def asks_for_the_release(person: Visitor, server: Server) -> None:
    person.open_run_form(server.deployment("release/sample"))
    person.submits()
    run = server.wait("release", "Suspended")
    person.opens(f"runs/flow-run/{run['id']}")
    person.presses("Resume")
    person.sees("Your name")
    person.presses("Submit")  # an empty answer is none
    person.sees("'name' is a required property")
    assert server.newest("release")["state"]["name"] == "Suspended"


def approves(person: Visitor, server: Server) -> None:
    person.opens(f"runs/flow-run/{server.newest('release')['id']}")  # without the refusal of the empty form
    person.presses("Resume")
    person.sees("Your name")
    person.page.locator(".p-modal .p-toggle__control").first.click()
    for field, text in enumerate(("the ranger", "looked at the lizards")):
        person.page.locator(".p-modal textarea").nth(field).fill(text)
    person.shot("approval")
    person.presses("Submit")
    run = server.wait("release", "Released")
    person.opens(f"runs/flow-run/{run['id']}?tab=Artifacts")
    person.clicks("Artifacts")
    person.page.locator("a[href*='/artifacts/']").first.click()
    person.page.get_by_text("reference predictions compared").wait_for()
    person.shot("released")


def looks_on_a_phone(person: Visitor, server: Server) -> None:
    person.signs_in(server.password)
    person.opens(f"runs/flow-run/{server.newest('release')['id']}")
    person.sees("Suspended")
    person.page.locator(".p-icon-button-menu button, button.p-icon-button-menu").first.click()  # ⋮
    person.clicks("Resume")
    person.shot("approval-phone", "Your name")
    person.page.close()
