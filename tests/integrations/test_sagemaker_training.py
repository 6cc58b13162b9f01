"""Training as a SageMaker job: the same model as here, through interruptions, kills and faults, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError

from animl_pipeline.config import Plan, load_plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core import progress
from animl_pipeline.core.errors import SettingsError, TrainingError, WeightsError
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, Addresses, local_sagemaker
from animl_pipeline.integrations.sagemaker_training import check_ready, train_elsewhere
from animl_pipeline.integrations.sagemaker_training.container import run_job
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.storage.step_cache import open_store
from tests.support.blots import crops_and_splits, plan_with, settings_at
from tests.support.paths import ROOT

BUCKET = "trained"

FLOW = """
import sys
from pathlib import Path
from animl_pipeline.integrations.sagemaker_training import check_ready, train_elsewhere
from animl_pipeline.storage.step_cache import open_store
from flows import ending
from tests.support.blots import crops_and_splits
from tests.integrations.test_sagemaker_training import plan_elsewhere, settings_in
ending.listen_for_stops()
settings = settings_in(Path({folder!r}), {prefix!r})
store = open_store(settings)
try:
    train_elsewhere(*crops_and_splits(store), plan_elsewhere({epochs}), store, settings)
except ending.Stopped:
    ending.leave()
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """SageMaker and S3 on this machine, to which this process's boto3 is led; small tensors gain nothing from more threads."""
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        with local_sagemaker(tmp_path_factory.mktemp("cloud")) as addresses:
            for name, value in addresses.variables().items():
                patched.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
            yield addresses


def settings_in(folder: Path, prefix: str) -> Settings:
    return Settings(store=f"s3://{BUCKET}/{prefix}", data=folder, cache=folder / "cache", workers=2, training_image=IMAGE, training_role_arn=ROLE)


def plan_elsewhere(epochs: int = 4, **sagemaker: Any) -> Plan:
    """Training that leaves a checkpoint after every step, elsewhere."""
    return plan_with(epochs=epochs, checkpoint_steps=1, on="sagemaker", sagemaker=sagemaker)


def jobs() -> list[dict[str, Any]]:
    """All jobs there are, the newest first, described."""
    client: Any = boto3.client("sagemaker")
    names = [j["TrainingJobName"] for page in client.get_paginator("list_training_jobs").paginate() for j in page["TrainingJobSummaries"]]
    return [client.describe_training_job(TrainingJobName=name) for name in names]


def until(true: Any, what: str) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def start_flow(folder: Path, prefix: str, epochs: int) -> subprocess.Popen[str]:
    """A process that trains elsewhere; the job that it has started is in training, or waited for, when this returns."""
    before = len(jobs())
    code = FLOW.format(folder=str(folder), prefix=prefix, epochs=epochs)
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), stderr=subprocess.PIPE, text=True)
    until(lambda: len(jobs()) > before or child.poll() is not None, "no job was started")
    return child


def test_interrupted_and_taken_over_after_a_kill_a_job_makes_the_model_that_training_here_makes(aws: Addresses, tmp_path: Path) -> None:
    here = settings_at(tmp_path / "here")
    store = open_store(here)
    expected = train_classifier(*crops_and_splits(store), plan_with(epochs=4, checkpoint_steps=1), store, here)

    aws.turn(spot_interruptions=1)
    child = start_flow(tmp_path / "flow", "killed", 4)
    child.kill()
    child.communicate()
    before = jobs()
    settings = settings_in(tmp_path / "flow", "killed")
    store = open_store(settings)
    seen: list[int] = []
    progress.listen(lambda what, done, total: seen.append(done) if what == "training epochs on SageMaker" else None)
    try:
        made = train_elsewhere(*crops_and_splits(store), plan_elsewhere(4), store, settings)
    finally:
        progress.listen(None)

    assert made.digest == expected.digest
    assert made.key == expected.key
    assert not made.cached
    assert made.counts == expected.counts
    assert seen[-1] == 4
    (job,) = jobs()
    assert job["TrainingJobName"] == before[0]["TrainingJobName"]
    states = [t["Status"] for t in job["SecondaryStatusTransitions"]]
    assert states == ["Starting", "Training", "Interrupted", "Restarting", "Training", "Uploading", "Completed"]
    assert {m["MetricName"] for m in job["FinalMetricDataList"]} == {"epoch", "train:loss", "val:loss", "val:macro_ap", "val:macro_f1"}
    assert list(store.object_store.names("jobs/")) == []
    assert train_elsewhere(*crops_and_splits(store), plan_elsewhere(4), store, settings).cached


def test_the_request_says_what_it_runs_where_checkpoints_go_and_how_long_it_may_take(aws: Addresses) -> None:
    from animl_pipeline.integrations.sagemaker_training.job_spec import request

    asked = request("island-1-1", "island-1", plan_elsewhere(max_hours=2, wait_hours=1, instance="ml.g4dn.xlarge"), settings_in(Path(), "p"))
    assert asked["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert asked["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python", "-m", "animl_pipeline.integrations.sagemaker_training"]
    assert asked["CheckpointConfig"] == {"S3Uri": f"s3://{BUCKET}/p/jobs/island-1/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    assert asked["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 10800}
    assert asked["RoleArn"] == ROLE
    assert {"Key": "animl:model", "Value": "island"} in asked["Tags"]


def test_a_flow_that_is_told_to_stop_stops_its_job(aws: Addresses, tmp_path: Path) -> None:
    child = start_flow(tmp_path, "stopped", 2000)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM, said
    assert jobs()[0]["TrainingJobStatus"] in {"Stopping", "Stopped"}
    until(lambda: jobs()[0]["TrainingJobStatus"] == "Stopped", "the job did not stop")


@pytest.mark.parametrize(
    ("fault", "words"),
    [("no_capacity", ["CapacityError", "train.sagemaker.instance"]), ("training_cannot_start", ["AlgorithmError", "container"])],
)
def test_a_job_that_fails_says_why_and_the_next_try_has_another_name(aws: Addresses, tmp_path: Path, fault: str, words: list[str]) -> None:
    settings = settings_in(tmp_path, fault)
    store = open_store(settings)
    crops, splits = crops_and_splits(store)
    for number in (1, 2):
        aws.turn(**{fault: 1})
        with pytest.raises(TrainingError) as failed:
            train_elsewhere(crops, splits, plan_elsewhere(epochs=3 if fault == "no_capacity" else 5), store, settings)
        assert all(word in str(failed.value) for word in words)
        assert jobs()[0]["TrainingJobName"].endswith(f"-{number}")


def test_a_job_that_runs_too_long_says_which_limit_to_raise(aws: Addresses, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, "long")
    store = open_store(settings)
    with pytest.raises(TrainingError, match=r"raise train\.sagemaker\.max_hours"):
        train_elsewhere(*crops_and_splits(store), plan_elsewhere(epochs=1999, max_hours=1 / 3600), store, settings)
    assert jobs()[0]["SecondaryStatus"] == "MaxRuntimeExceeded"


@pytest.mark.parametrize(
    ("changes", "train", "error", "words"),
    [
        ({"store": "folder"}, {}, SettingsError, "ANIML_STORE"),
        ({"training_image": ""}, {}, SettingsError, "ANIML_TRAINING_IMAGE"),
        ({"training_role_arn": ""}, {}, SettingsError, "ANIML_TRAINING_ROLE_ARN"),
        ({}, {"weights": "mine.safetensors"}, WeightsError, "mine.safetensors"),
    ],
)
def test_what_no_other_machine_can_do_is_refused_in_one_line(
    aws: Addresses, tmp_path: Path, changes: dict[str, str], train: dict[str, str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as refused:
        check_ready(plan_with(on="sagemaker", **train), settings_in(tmp_path, "x").model_copy(update=changes))
    assert "\n" not in str(refused.value)


def test_an_image_of_another_version_refuses_before_it_trains_and_leaves_the_reason_for_sagemaker(aws: Addresses, tmp_path: Path) -> None:
    from animl_pipeline.integrations.sagemaker_training.job_spec import Order

    settings = settings_in(tmp_path, "other")
    store = open_store(settings)
    crops, splits = crops_and_splits(store)
    order = Order(key="0" * 16, plan=plan_elsewhere(), crops=crops, splits=splits)
    store.object_store.put("jobs/x/order.json", order.model_dump_json(by_alias=True).encode())
    for location, words in {"jobs/x/order.json": "another version", "jobs/y/order.json": "holds no order"}.items():
        (tmp_path / "input/config").mkdir(parents=True, exist_ok=True)
        (tmp_path / "input/config/hyperparameters.json").write_text(json.dumps({"store": settings.store, "order": location}))
        assert run_job(tmp_path) == 1
        assert words in (tmp_path / "output/failure").read_text()


def test_sagemaker_refuses_what_aws_would_refuse(aws: Addresses) -> None:
    from animl_pipeline.integrations.sagemaker_training.job_spec import request

    client: Any = boto3.client("sagemaker")
    asked: dict[str, Any] = dict(request("refused-1", "refused", plan_elsewhere(), settings_in(Path(), "p")))
    for change, words in [
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59}}, "MaxWaitTimeInSeconds"),
        ({"ResourceConfig": asked["ResourceConfig"] | {"InstanceType": "ml.huge"}}, "enum value set"),
        ({"TrainingJobName": "-"}, "trainingJobName"),
    ]:
        with pytest.raises(ClientError, match=words):
            client.create_training_job(**(asked | change))
    with pytest.raises(ClientError, match="Could not find"):
        client.describe_training_job(TrainingJobName="nobody")


def test_the_task_trains_where_the_plan_says(aws: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.training import check_ready as checked
    from tasks.training import train_classifier as task

    monkeypatch.setenv("ANIML_STORE", str(tmp_path / "store"))
    with pytest.raises(SettingsError, match="ANIML_STORE"):
        checked(plan_elsewhere())
    with pytest.raises(SettingsError, match="ANIML_STORE"):
        task.fn(*crops_and_splits(open_store(settings_at(tmp_path))), plan_elsewhere())


def test_a_bare_on_is_the_key_although_yaml_takes_it_for_true(tmp_path: Path) -> None:
    data = json.loads(plan_elsewhere().model_dump_json(by_alias=True))
    written = yaml.safe_dump(data).replace("'on': sagemaker", "on: sagemaker")
    assert "  on: sagemaker" in written
    (tmp_path / "plan.yaml").write_text(written)
    assert load_plan(tmp_path / "plan.yaml").train.on == "sagemaker"
