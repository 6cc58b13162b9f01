"""What docs/biologist.md tells, in a real browser: a training from the form, its artifacts, an approval, and the endpoint answers.

``make screenshots`` keeps what the browser showed, for the docs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from animl_pipeline.config import load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.release_records import ReferencePrediction
from animl_pipeline.deploy import invoke_endpoint, release_records
from animl_pipeline.deploy.training_records import read_latest_report
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, local_sagemaker
from animl_pipeline.dev.synthetic_dataset import write_synthetic_dataset
from animl_pipeline.storage.step_cache import open_store
from tests.support.browser import Visitor, chromium
from tests.support.endpoint_process import wait_until
from tests.support.team_server import ROOT, free_port, stop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="expected playwright (the dev extra), found none"),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="expected a chromium (Debian's), found none"),
]
MINUTES = 60.0


class House:
    """Everything on one machine, as `animl-pipeline up` starts it, with the drawn island and a plan that asks before a release."""

    def __init__(self, folder: Path, cloud: dict[str, str]) -> None:
        self.folder = folder
        write_synthetic_dataset(folder / "data" / "sample")
        data = yaml.safe_load((ROOT / "deployments/plans/sample.yaml").read_text(encoding="utf-8"))
        data["release"] |= {"approval": "required"}
        (folder / "plans").mkdir()
        self.file = folder / "plans" / "sample.yaml"
        self.file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ANIML_", "AWS_"))}
        locations = {"ANIML_STORE": "store", "ANIML_DATA": "data", "ANIML_PLANS": "plans", "PREFECT_HOME": "prefect"}
        aws = cloud | {"ANIML_ROLE_ARN": ROLE, "ANIML_ENDPOINT_IMAGE": IMAGE, "ANIML_MODELS_BUCKET": "browser"}
        self.environment = ours | aws | {name: str(folder / location) for name, location in locations.items()} | {"OMP_NUM_THREADS": "1"}
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.images = ROOT / os.environ["SCREENSHOTS"] if "SCREENSHOTS" in os.environ else folder / "images"
        self.images.mkdir(exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        """`animl-pipeline up`, once it says where the UI is."""
        log = self.folder / "up.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "animl_pipeline.cli.main", "up", "--port", str(self.port)]
            up = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        wait_until(lambda: "Prefect's UI:" in log.read_text() or up.poll() is not None, "the UI is up", seconds=5 * MINUTES)
        assert up.poll() is None, log.read_text()
        return up

    def newest(self, flow: str) -> dict[str, Any]:
        """The newest run of a flow, as the API knows it."""
        runs = requests.post(
            f"{self.address}/api/flow_runs/filter", json={"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}, timeout=60
        )
        found: dict[str, Any] = runs.json()[0]
        return found

    def wait(self, flow: str, *names: str) -> dict[str, Any]:
        """Until a flow's newest run is in one of the states."""
        wait_until(lambda: self.newest(flow)["state"]["name"] in {*names, "Failed", "Crashed"}, f"{flow} is {names}", seconds=30 * MINUTES)
        run = self.newest(flow)
        assert run["state"]["name"] in names, run["state"]["message"]
        return run


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    import boto3

    with local_sagemaker(tmp_path / "cloud") as addresses:
        made = House(tmp_path, addresses.variables())
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


def test_a_person_trains_watches_reads_approves_and_the_endpoint_answers_with_the_new_version(house: House) -> None:
    with chromium() as browser:
        person = Visitor(browser, house.address, house.images)
        starts_a_training(person, house)
        watches_it(person, house)
        house.wait("retrain", "AwaitingApproval")
        reads_what_came_of_it(person, house)
        asks_for_the_release(person, house)
        looks_on_a_phone(Visitor(browser, house.address, house.images, phone=True), house)
        approves(person, house)
        assert person.strangers == []
    plan, store = load_plan(house.file), open_store(Settings())
    report = read_latest_report(plan.model, store)
    (record,) = release_records(plan, store)
    assert (record.version, record.state) == (report.version, "done")
    assert record.approval is not None
    assert (record.approval.by, record.approval.note, record.approval.given_in) == ("the ranger", "looked at the lizards", "prefect")
    reference = ReferencePrediction.model_validate(json.loads(store.path(report.package, "reference_predictions.json").read_bytes())[0])
    said = invoke_endpoint(plan.endpoint_name(), store.path(report.package, f"reference_predictions/{reference.image}").read_bytes(), reference.box)
    assert said == pytest.approx(reference.probabilities, abs=plan.release.tolerance)


def starts_a_training(person: Visitor, house: House) -> None:
    person.opens("deployments")
    person.shot("deployments", "santa-cruz-island", "rollback")
    person.asks_for_a_run("sample")
    assert person.page.locator("textarea").first.input_value() == "sample"
    person.presses("int")  # a field of Epochs in place of "None"
    person.page.locator("input[type=number]").first.fill("2")
    person.shot("form", "Epochs (Optional)")
    person.submits()
    wait_until(lambda: house.newest("retrain")["state"]["name"] == "Running", "the training runs", seconds=5 * MINUTES)
    run = house.newest("retrain")
    assert run["parameters"]["plan"] == "sample"
    assert run["parameters"]["overrides"]["epochs"] == 2


def watches_it(person: Visitor, house: House) -> None:
    person.opens("runs")
    person.page.get_by_role("link", name="retrain sample").first.click()
    person.clicks("Artifacts")
    person.shot("running", "progress-training-steps")


def reads_what_came_of_it(person: Visitor, house: House) -> None:
    run = f"runs/flow-run/{house.newest('retrain')['id']}"
    for artifact, shown in (
        ("splits", "train"),
        ("kept-and-dropped", "images island"),
        ("scores", "lizard"),
        ("verdict", "every class has at least 5 test examples from 2 places"),
    ):
        person.opens(f"{run}?tab=Artifacts")
        person.clicks("Artifacts")
        person.clicks(artifact)
        person.shot(artifact, shown)
    for artifact in ("learning-curves", "confusion"):
        person.opens(f"{run}?tab=Artifacts")
        person.clicks("Artifacts")
        person.clicks(artifact)
        image = person.page.locator("img[src^='data:image/png']").first
        image.wait_for()
        assert image.evaluate("image => image.naturalWidth") > 200
        person.shot(artifact)


def asks_for_the_release(person: Visitor, house: House) -> None:
    person.asks_for_a_run("release")
    person.page.locator("textarea").first.fill("sample")
    person.submits()
    run = house.wait("release", "Suspended")
    person.opens(f"runs/flow-run/{run['id']}")
    person.presses("Resume")
    person.sees("Your name")
    person.presses("Submit")  # an empty answer is none
    person.sees("'approve' is a required property")
    assert house.newest("release")["state"]["name"] == "Suspended"


def approves(person: Visitor, house: House) -> None:
    for field, text in enumerate(("yes", "the ranger", "looked at the lizards")):
        person.page.locator(".p-modal textarea").nth(field).fill(text)
    person.shot("approval")
    person.presses("Submit")
    run = house.wait("release", "Released")
    person.opens(f"runs/flow-run/{run['id']}?tab=Artifacts")
    person.clicks("Artifacts")
    person.page.locator("a[href*='/artifacts/']").first.click()
    person.page.get_by_text("golden crops asked live").wait_for()
    person.shot("released")


def looks_on_a_phone(person: Visitor, house: House) -> None:
    person.opens(f"runs/flow-run/{house.newest('release')['id']}")
    person.sees("Suspended")
    person.page.locator(".p-icon-button-menu button, button.p-icon-button-menu").first.click()  # ⋮
    person.clicks("Resume")
    person.shot("approval-phone", "Your name")
    person.page.close()
