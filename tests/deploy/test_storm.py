"""Releases while the endpoint is called without a pause, and releases that are killed at any moment, in real processes."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from animl_pipeline.config import Plan, check_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.imaging import open_image
from animl_pipeline.core.records import WHOLE_IMAGE, Artifact
from animl_pipeline.deploy import deploy_endpoint, realtime_status, release_records
from animl_pipeline.deploy.latest_report import keep_report
from animl_pipeline.deploy.live_check import check_endpoint
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, Addresses
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.storage.step_cache import Store, open_store
from tests.conftest import jpeg
from tests.support.packaged_model import colour_plan_data, package_of, report_of
from tests.support.paths import ROOT
from tests.support.sagemaker_faults import spoiled

IMAGE_FILE = jpeg(colour=(200, 40, 40))


@dataclass
class World:
    """A store, an endpoint of its own, and what a client saw."""

    store: Store
    settings: Settings
    plan: Plan
    folder: Path
    variables: dict[str, str]
    throttled: int = 0
    faults: list[str] = field(default_factory=list)


@pytest.fixture
def world(cloud: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    locations = {"ANIML_STORE": str(tmp_path / "store"), "PREFECT_HOME": str(tmp_path / "prefect")}
    variables = cloud.variables() | locations | {"ANIML_ROLE_ARN": ROLE, "ANIML_ENDPOINT_IMAGE": IMAGE}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    boto3.setup_default_session()
    settings = Settings()
    data = colour_plan_data(endpoint=f"storm-{uuid.uuid4().hex[:8]}")
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return World(open_store(settings), settings, check_plan(data), tmp_path, variables)


def version_of(world: World, n: int) -> tuple[Artifact, float]:
    """A package that no other number gives, and what it answers for the picture."""
    temperature = 1.0 + n / 4
    package = package_of(world.store, world.folder, f"v{n}", temperature=temperature)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(world.store.path(package, "model.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
        answer = Classifier.load(Path(folder)).classify(open_image(IMAGE_FILE), WHOLE_IMAGE)
    return package, round(answer["red"], 4)


class Client(threading.Thread):
    """Asks the endpoint without a pause; a throttled request is asked again, as Animl's queue does."""

    def __init__(self, world: World, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.stop = stop
        self.body = json.dumps({"image": base64.b64encode(IMAGE_FILE).decode(), "bbox": WHOLE_IMAGE.as_list()})
        self.runtime = boto3.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}, read_timeout=70))
        self.answers: Counter[float] = Counter()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                reply = self.runtime.invoke_endpoint(EndpointName=self.world.plan.endpoint_name(), Body=self.body)["Body"].read()
                self.answers[round(json.loads(reply)["red"], 4)] += 1
            except ClientError as e:
                if e.response["Error"]["Code"] == "ThrottlingException":
                    self.world.throttled += 1
                else:
                    self.world.faults.append(str(e))
            except (BotoCoreError, ValueError, KeyError) as e:
                self.world.faults.append(repr(e))


def storm(world: World, releases: int, rollbacks: int, clients: int, seed: int) -> dict[str, Any]:
    """Call without a pause while versions are released and rolled back; what was seen comes back."""
    chance = np.random.default_rng(seed)
    first, answer = version_of(world, 0)
    deploy_endpoint(first, world.plan, world.store, world.settings)
    stop = threading.Event()
    askers = [Client(world, stop) for _ in range(clients)]
    for asker in askers:
        asker.start()
    orders = ["release"] * releases + ["rollback"] * rollbacks
    chance.shuffle(orders)
    served = {answer}
    try:
        for n, order in enumerate(orders, 1):
            package, answer = version_of(world, n)
            served.add(answer)
            if order == "release":
                deploy_endpoint(package, world.plan, world.store, world.settings)
                continue
            with pytest.raises(ReleaseError, match=r"unlike offline.*rolled back to"):
                deploy_endpoint(spoiled(world.store, package), world.plan, world.store, world.settings)
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    answers = sum((a.answers for a in askers), Counter())
    return {"answers": answers, "served": served}


def stormed(world: World, releases: int, rollbacks: int, clients: int) -> None:
    seen = storm(world, releases, rollbacks, clients, seed=7)
    answers: Counter[float] = seen["answers"]
    done = Counter((r.kind, r.state) for r in release_records(world.plan, world.store))
    print(  # noqa: T201 - the figures, shown with -s
        f"storm: {answers.total()} answers of {len(answers)} versions, {world.throttled} throttled, {len(world.faults)} failed; "
        f"{done[('release', 'done')]} releases, {done[('release', 'rolled_back')]} rolled back"
    )
    assert world.faults == []
    assert set(answers) <= seen["served"]
    assert done == {("release", "done"): releases + 1, ("release", "rolled_back"): rollbacks}
    assert answers.total() > 20 * (releases + rollbacks)


def test_no_request_fails_during_releases_and_forced_rollbacks(world: World) -> None:
    stormed(world, releases=1, rollbacks=1, clients=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_of_20_at_a_time_fails_during_10_releases_and_5_forced_rollbacks(world: World) -> None:
    stormed(world, releases=10, rollbacks=5, clients=20)


RELEASE = """
import sys
from animl_pipeline.deploy import deploy_endpoint, rollback_endpoint
from animl_pipeline.config import load_plan
from animl_pipeline.deploy.latest_report import newest_report
from animl_pipeline.config.settings import load_settings
from animl_pipeline.storage.step_cache import open_store
settings, plan = load_settings(), load_plan(sys.argv[2])
store = open_store(settings)
print("begun", flush=True)
if sys.argv[1] == "release":
    report = newest_report(plan.model, store)
    deploy_endpoint(report.package, plan, store, settings, report=report)
else:
    rollback_endpoint(plan, store, settings)
"""
"""What the command does, without Prefect around it: most of the command's time is Prefect's start, where a kill finds nothing begun."""


def killed(world: World, order: str, plan: Path, after_s: float, *, command: bool) -> bool:
    """Start a release and kill it ``after_s`` after it has begun its work; whether it was still at it."""
    words = ["release", "rollback"] if order == "rollback" else ["release", "run"]
    line = [sys.executable, "-m", "animl_pipeline.cli.main", *words, str(plan)] if command else [sys.executable, "-c", RELEASE, order, str(plan)]
    out, err = (subprocess.DEVNULL, subprocess.PIPE) if command else (subprocess.PIPE, subprocess.DEVNULL)
    with subprocess.Popen(line, cwd=ROOT, env=os.environ | world.variables, stdout=out, stderr=err, text=True) as process:
        said = process.stderr if command else process.stdout
        assert said is not None
        said.readline()
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def kill_again_and_again(world: World, kills: int, seed: int, *, commands: int = 0) -> None:
    """Releases of good and bad packages and rollbacks, each killed somewhere, while a client asks; at the end one is left alone."""
    chance = np.random.default_rng(seed)
    plan = world.folder / "colours.yaml"
    package, answer = version_of(world, 0)
    started = time.monotonic()
    deploy_endpoint(package, world.plan, world.store, world.settings)
    usual_s = time.monotonic() - started
    stop = threading.Event()
    asker = Client(world, stop)
    asker.start()
    shown, hit, half_done = {answer}, Counter[str](), 0
    try:
        for n in range(1, kills + 1):
            order = str(chance.choice(["release", "spoiled", "rollback"], p=[0.6, 0.2, 0.2]))
            if order != "rollback":
                package, answer = version_of(world, n)
                shown.add(answer)
                package = spoiled(world.store, package) if order == "spoiled" else package
                keep_report(report_of(package, world.store), world.store)
            if killed(world, order if order == "rollback" else "release", plan, chance.uniform(0, 1.3 * usual_s), command=n <= commands):
                hit[order] += 1
            half_done += any(r.state == "begun" for r in release_records(world.plan, world.store))
            true_history(world)
        package, answer = version_of(world, kills + 1)
        last = deploy_endpoint(package, world.plan, world.store, world.settings)
    finally:
        stop.set()
        asker.join()
    print(  # noqa: T201 - the figures, shown with -s
        f"kills: {kills} orders, killed {dict(hit)}, {half_done} of them with a change half done; "
        f"{asker.answers.total()} answers, {world.throttled} throttled, {len(world.faults)} failed"
    )
    history = release_records(world.plan, world.store)
    now = realtime_status(world.plan, world.store, world.settings)
    assert world.faults == []
    assert set(asker.answers) <= shown | {answer}
    assert (now.endpoint_config, now.status, now.unfinished) == (last.endpoint_config, "InService", False)
    assert check_endpoint(Aws(), last.endpoint, package, world.store, 0.02, 60).crops == 3
    assert {r.state for r in history} <= {"done", "rolled_back"}
    assert history[-1].endpoint_config == now.endpoint_config
    assert sum(hit.values()) >= kills / 3, "too few were killed while they were at work"
    assert half_done >= kills // 10, "too few were killed between the record's beginning and its end"


def true_history(world: World) -> None:
    """What answers now is what the history says: its last change that held, or one that is under way."""
    history = release_records(world.plan, world.store)
    now = realtime_status(world.plan, world.store, world.settings)
    held = [r.endpoint_config for r in history if r.state == "done"][-1]
    under_way = {r.endpoint_config for r in history if r.state == "begun"}
    assert now.endpoint_config in {held} | under_way
    assert now.status in {"InService", "Updating"}


def test_a_release_that_is_killed_anywhere_leaves_an_endpoint_that_answers_and_a_true_history(world: World) -> None:
    kill_again_and_again(world, kills=3, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_50_kills_of_a_release_leave_an_endpoint_that_answers_and_a_true_history(world: World) -> None:
    kill_again_and_again(world, kills=50, seed=11, commands=10)
