"""Releases under constant load, and releases killed at random moments, in real processes."""

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
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.box_type import WHOLE_IMAGE
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.deploy import deploy_package, realtime_status, release_records
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.live_check import check_endpoint
from animl_pipeline.deploy.trained_versions import save_report
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, Addresses
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.storage.store import Store, open_store
from tests.conftest import jpeg
from tests.support.packaged_model import colour_plan_data, make_package, make_report
from tests.support.paths import ROOT
from tests.support.sagemaker_faults import with_wrong_predictions

IMAGE_FILE = jpeg(colour=(200, 40, 40))


@dataclass
class Setup:
    """A store, a plan with its own endpoint, and what the clients counted."""

    store: Store
    settings: Settings
    plan: Plan
    folder: Path
    variables: dict[str, str]
    throttled: int = 0
    failures: list[str] = field(default_factory=list)


@pytest.fixture
def setup(cloud: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    folders = {"ANIML_STORE": str(tmp_path / "store"), "PREFECT_HOME": str(tmp_path / "prefect")}
    variables = cloud.variables() | folders | {"ANIML_ROLE_ARN": ROLE, "ANIML_ENDPOINT_IMAGE": IMAGE}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    boto3.setup_default_session()
    settings = Settings()
    data = colour_plan_data(endpoint=f"storm-{uuid.uuid4().hex[:8]}")
    (tmp_path / "colours.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return Setup(open_store(settings), settings, check_plan(data), tmp_path, variables)


def version_of(setup: Setup, n: int) -> tuple[Artifact, float]:
    """The n-th package, each different from all others, and its answer for the image."""
    temperature = 1.0 + n / 4
    package = make_package(setup.store, setup.folder, f"v{n}", temperature=temperature)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(setup.store.path(package, "model.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
        answer = Classifier.load(Path(folder)).classify(open_image(IMAGE_FILE), WHOLE_IMAGE)
    return package, round(answer["red"], 4)


class Client(threading.Thread):
    """Calls the endpoint without a pause, and repeats throttled requests, as Animl's queue does."""

    def __init__(self, setup: Setup, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.setup = setup
        self.stop = stop
        self.body = json.dumps({"image": base64.b64encode(IMAGE_FILE).decode(), "bbox": WHOLE_IMAGE.as_list()})
        self.runtime = boto3.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}, read_timeout=70))
        self.answers: Counter[float] = Counter()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                reply = self.runtime.invoke_endpoint(EndpointName=self.setup.plan.endpoint_name(), Body=self.body)["Body"].read()
                self.answers[round(json.loads(reply)["red"], 4)] += 1
            except ClientError as e:
                if e.response["Error"]["Code"] == "ThrottlingException":
                    self.setup.throttled += 1
                else:
                    self.setup.failures.append(str(e))
            except (BotoCoreError, ValueError, KeyError) as e:
                self.setup.failures.append(repr(e))


def release_under_load(setup: Setup, releases: int, rollbacks: int, clients: int, seed: int) -> dict[str, Any]:
    """Release and roll back versions while clients call the endpoint; the answers, and those of all versions, come back."""
    chance = np.random.default_rng(seed)
    first, answer = version_of(setup, 0)
    deploy_package(first, setup.plan, setup.store, setup.settings)
    stop = threading.Event()
    client_threads = [Client(setup, stop) for _ in range(clients)]
    for client in client_threads:
        client.start()
    actions = ["release"] * releases + ["rollback"] * rollbacks
    chance.shuffle(actions)
    served = {answer}
    try:
        for n, action in enumerate(actions, 1):
            package, answer = version_of(setup, n)
            served.add(answer)
            if action == "release":
                deploy_package(package, setup.plan, setup.store, setup.settings)
                continue
            with pytest.raises(ReleaseError, match="rolled back to"):
                deploy_package(with_wrong_predictions(setup.store, package), setup.plan, setup.store, setup.settings)
    finally:
        stop.set()
        for client in client_threads:
            client.join()
    answers = sum((a.answers for a in client_threads), Counter())
    return {"answers": answers, "served": served}


def check_under_load(setup: Setup, releases: int, rollbacks: int, clients: int) -> None:
    seen = release_under_load(setup, releases, rollbacks, clients, seed=7)
    answers: Counter[float] = seen["answers"]
    done = Counter((r.kind, r.state) for r in release_records(setup.plan, setup.store))
    print(  # noqa: T201 - figures, shown with -s
        f"storm: {answers.total()} answers of {len(answers)} versions, {setup.throttled} throttled, {len(setup.failures)} failed; "
        f"{done[('release', 'done')]} releases, {done[('release', 'rolled_back')]} rolled back"
    )
    assert setup.failures == []
    assert set(answers) <= seen["served"]
    assert done == {("release", "done"): releases + 1, ("release", "rolled_back"): rollbacks}
    assert answers.total() > 20 * (releases + rollbacks)


def test_no_request_fails_during_releases_and_forced_rollbacks(setup: Setup) -> None:
    check_under_load(setup, releases=1, rollbacks=1, clients=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_of_20_at_a_time_fails_during_10_releases_and_5_forced_rollbacks(setup: Setup) -> None:
    check_under_load(setup, releases=10, rollbacks=5, clients=20)


RELEASE = """
import sys
from animl_pipeline.deploy import deploy_package, roll_back
from animl_pipeline.config import load_plan
from animl_pipeline.deploy.trained_versions import read_latest_report
from animl_pipeline.config.settings import load_settings
from animl_pipeline.storage.store import open_store
settings, plan = load_settings(), load_plan(sys.argv[2])
store = open_store(settings)
print("begun", flush=True)
if sys.argv[1] == "release":
    report = read_latest_report(plan.model, store)
    deploy_package(report.package, plan, store, settings, report=report)
else:
    roll_back(plan, store, settings)
"""
"""The work of the command without Prefect, whose start takes most of the command's time and would get most of the kills."""


def start_and_kill(setup: Setup, action: str, plan: Path, after_s: float, *, command: bool) -> bool:
    """Start a release and kill it ``after_s`` seconds after it began to work; whether it was still running."""
    words = ["release", "rollback"] if action == "rollback" else ["release", "run"]
    line = [sys.executable, "-m", "animl_pipeline.cli.main", *words, str(plan)] if command else [sys.executable, "-c", RELEASE, action, str(plan)]
    out, err = (subprocess.DEVNULL, subprocess.PIPE) if command else (subprocess.PIPE, subprocess.DEVNULL)
    with subprocess.Popen(line, cwd=ROOT, env=os.environ | setup.variables, stdout=out, stderr=err, text=True) as process:
        output = process.stderr if command else process.stdout
        assert output is not None
        output.readline()
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def kill_repeatedly(setup: Setup, kills: int, seed: int, *, commands: int = 0) -> None:
    """Start releases of good and bad packages and rollbacks while a client calls; kill each, then let one release finish."""
    chance = np.random.default_rng(seed)
    plan = setup.folder / "colours.yaml"
    package, answer = version_of(setup, 0)
    started = time.monotonic()
    deploy_package(package, setup.plan, setup.store, setup.settings)
    normal_s = time.monotonic() - started
    stop = threading.Event()
    client = Client(setup, stop)
    client.start()
    shown, hit, half_done = {answer}, Counter[str](), 0
    try:
        for n in range(1, kills + 1):
            action = str(chance.choice(["release", "wrong", "rollback"], p=[0.6, 0.2, 0.2]))
            if action != "rollback":
                package, answer = version_of(setup, n)
                shown.add(answer)
                package = with_wrong_predictions(setup.store, package) if action == "wrong" else package
                save_report(make_report(package, setup.store), setup.store)
            if start_and_kill(setup, action if action == "rollback" else "release", plan, chance.uniform(0, 1.3 * normal_s), command=n <= commands):
                hit[action] += 1
            half_done += any(r.state == "begun" for r in release_records(setup.plan, setup.store))
            check_history(setup)
        package, answer = version_of(setup, kills + 1)
        last = deploy_package(package, setup.plan, setup.store, setup.settings)
    finally:
        stop.set()
        client.join()
    print(  # noqa: T201 - figures, shown with -s
        f"kills: {kills} actions, killed {dict(hit)}, {half_done} of them with a change half done; "
        f"{client.answers.total()} answers, {setup.throttled} throttled, {len(setup.failures)} failed"
    )
    history = release_records(setup.plan, setup.store)
    now = realtime_status(setup.plan, setup.store, setup.settings)
    assert setup.failures == []
    assert set(client.answers) <= shown | {answer}
    assert (now.endpoint_config, now.status, now.unfinished) == (last.endpoint_config, "InService", False)
    assert check_endpoint(AwsApi(), last.endpoint, package, setup.store, 0.02, 60).images == 3
    assert {r.state for r in history} <= {"done", "rolled_back"}
    assert history[-1].endpoint_config == now.endpoint_config
    assert sum(hit.values()) >= kills / 3, "too few were killed while running"
    assert half_done >= kills // 10, "too few were killed during a change"


def check_history(setup: Setup) -> None:
    """The endpoint serves what the history says: the last successful change, or an unfinished one."""
    history = release_records(setup.plan, setup.store)
    now = realtime_status(setup.plan, setup.store, setup.settings)
    held = [r.endpoint_config for r in history if r.state == "done"][-1]
    under_way = {r.endpoint_config for r in history if r.state == "begun"}
    assert now.endpoint_config in {held} | under_way
    assert now.status in {"InService", "Updating"}


def test_a_killed_release_leaves_an_endpoint_that_answers_and_a_correct_history(setup: Setup) -> None:
    kill_repeatedly(setup, kills=3, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_50_killed_releases_leave_an_endpoint_that_answers_and_a_correct_history(setup: Setup) -> None:
    kill_repeatedly(setup, kills=50, seed=11, commands=10)
