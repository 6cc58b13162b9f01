"""Training in a SageMaker job: the same model as a local training, also after interruptions, kills and failures."""

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
from botocore.exceptions import ClientError

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core import progress
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError, SettingsError, TrainingError, TrainingInterruptedError, WeightsError
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, Addresses, local_sagemaker
from animl_pipeline.integrations.sagemaker_training import build_in_job, check_job_settings
from animl_pipeline.steps.training import train_classifier
from animl_pipeline.steps.training.__main__ import run_job
from animl_pipeline.storage.store import Store, open_store
from tests.support.paths import ROOT
from tests.support.training_crops import crops_and_splits, plan_with, settings_at

BUCKET = "trained"

FLOW = """
from pathlib import Path
from animl_pipeline.storage.store import open_store
from flows import stop_signals
from tests.integrations.test_sagemaker_training import plan_on_sagemaker, settings_in, train_on_sagemaker
stop_signals.handle_signals()
settings = settings_in(Path({folder!r}), {prefix!r})
store = open_store(settings)
try:
    train_on_sagemaker(plan_on_sagemaker({epochs}), store, settings)
except stop_signals.Stopped:
    stop_signals.exit_now()
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A local SageMaker and S3 that this process's boto3 uses. One thread is enough for small tensors."""
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
    """Settings with a store in S3."""
    return Settings(store=f"s3://{BUCKET}/{prefix}", data=folder, cache=folder / "cache", workers=2, training_image=IMAGE, training_role_arn=ROLE)


def plan_on_sagemaker(epochs: int = 4, **sagemaker: Any) -> Plan:
    """A plan that trains on SageMaker, with a checkpoint after every step."""
    return plan_with(epochs=epochs, checkpoint_steps=1, run_on="sagemaker", sagemaker=sagemaker)


def train_on_sagemaker(plan: Plan, store: Store, settings: Settings) -> Artifact:
    """Train this plan on synthetic crops in a job."""
    crops, splits = crops_and_splits(store)
    return train_classifier(crops, splits, plan, store, settings, build_with=build_in_job(crops, splits, plan, store, settings))


def jobs() -> list[dict[str, Any]]:
    """Descriptions of all jobs, the newest first."""
    client: Any = boto3.client("sagemaker")
    names = [j["TrainingJobName"] for page in client.get_paginator("list_training_jobs").paginate() for j in page["TrainingJobSummaries"]]
    return [client.describe_training_job(TrainingJobName=name) for name in names]


def wait_until(true: Any, what: str) -> None:
    """Wait until a function returns true."""
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def start_flow(folder: Path, prefix: str, epochs: int) -> subprocess.Popen[str]:
    """A process that trains on SageMaker. When this returns, its job exists."""
    before = len(jobs())
    code = FLOW.format(folder=str(folder), prefix=prefix, epochs=epochs)
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(jobs()) > before or child.poll() is not None, "no job was started")
    return child


def test_a_job_that_was_interrupted_and_taken_over_makes_the_same_model_as_a_local_training(aws: Addresses, tmp_path: Path) -> None:
    local = settings_at(tmp_path / "local")
    store = open_store(local)
    expected = train_classifier(*crops_and_splits(store), plan_with(epochs=4, checkpoint_steps=1), store, local)

    aws.set_faults(spot_interruptions=1)
    child = start_flow(tmp_path / "flow", "killed", 4)
    child.kill()
    child.communicate()
    before = jobs()
    settings = settings_in(tmp_path / "flow", "killed")
    store = open_store(settings)
    epochs: list[int] = []
    progress.set_listener(lambda what, done, total: epochs.append(done) if what == "training epochs on SageMaker" else None)
    try:
        made = train_on_sagemaker(plan_on_sagemaker(4), store, settings)
    finally:
        progress.set_listener(None)

    assert made.digest == expected.digest
    assert made.key == expected.key
    assert not made.cached
    assert made.counts == expected.counts
    assert epochs[-1] == 4
    (job,) = jobs()
    assert job["TrainingJobName"] == before[0]["TrainingJobName"]
    states = [t["Status"] for t in job["SecondaryStatusTransitions"]]
    assert states == ["Starting", "Training", "Interrupted", "Restarting", "Training", "Uploading", "Completed"]
    assert {m["MetricName"] for m in job["FinalMetricDataList"]} == {"epoch", "train:loss", "val:loss", "val:macro_ap", "val:macro_f1"}
    assert list(store.object_store.names("jobs/")) == []
    assert train_on_sagemaker(plan_on_sagemaker(4), store, settings).cached


def test_the_request_has_image_checkpoints_time_limits_and_role(aws: Addresses) -> None:
    from animl_pipeline.integrations.sagemaker_training.job_spec import job_request

    asked = job_request("island-1-1", "island-1", plan_on_sagemaker(max_hours=2, wait_hours=1, instance="ml.g4dn.xlarge"), settings_in(Path(), "p"))
    assert asked["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert asked["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python", "-m", "animl_pipeline.steps.training"]
    assert asked["CheckpointConfig"] == {"S3Uri": f"s3://{BUCKET}/p/jobs/island-1/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    assert asked["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 10800}
    assert asked["RoleArn"] == ROLE
    assert {"Key": "animl:model", "Value": "island"} in asked["Tags"]


def test_a_stopped_flow_stops_its_job(aws: Addresses, tmp_path: Path) -> None:
    child = start_flow(tmp_path, "stopped", 2000)
    child.send_signal(signal.SIGTERM)
    _, output = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM, output
    assert jobs()[0]["TrainingJobStatus"] in {"Stopping", "Stopped"}
    wait_until(lambda: jobs()[0]["TrainingJobStatus"] == "Stopped", "the job did not stop")


@pytest.mark.parametrize(
    ("fault", "code", "reason"), [("no_capacity", "no_capacity", "CapacityError"), ("training_cannot_start", "job_failed", "AlgorithmError")]
)
def test_a_failed_job_has_a_reason_and_the_next_try_has_another_name(aws: Addresses, tmp_path: Path, fault: str, code: str, reason: str) -> None:
    settings = settings_in(tmp_path, fault)
    store = open_store(settings)
    for number in (1, 2):
        aws.set_faults(**{fault: 1})
        with pytest.raises(TrainingError) as failed:
            train_on_sagemaker(plan_on_sagemaker(epochs=3 if fault == "no_capacity" else 5), store, settings)
        assert failed.value.code == code
        assert reason in str(failed.value)
        assert jobs()[0]["TrainingJobName"].endswith(f"-{number}")


def test_a_job_that_reaches_its_time_limit_ends_with_an_error(aws: Addresses, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, "long")
    store = open_store(settings)
    with pytest.raises(TrainingError) as failed:
        train_on_sagemaker(plan_on_sagemaker(epochs=1999, max_hours=1 / 3600), store, settings)
    assert failed.value.code == "job_too_long"
    assert jobs()[0]["SecondaryStatus"] == "MaxRuntimeExceeded"


@pytest.mark.parametrize(
    ("changes", "train", "error", "code"),
    [
        ({"store": "folder"}, {}, SettingsError, "store_not_in_s3"),
        ({"training_image": ""}, {}, SettingsError, "no_training_image"),
        ({"training_role_arn": ""}, {}, SettingsError, "no_role"),
        ({}, {"weights": "mine.safetensors"}, WeightsError, "weights_not_shared"),
    ],
)
def test_settings_that_a_job_cannot_use_are_refused(
    aws: Addresses, tmp_path: Path, changes: dict[str, str], train: dict[str, str], error: type[PipelineError], code: str
) -> None:
    with pytest.raises(error) as refused:
        check_job_settings(plan_with(run_on="sagemaker", **train), settings_in(tmp_path, "x").model_copy(update=changes))
    assert refused.value.code == code
    assert "\n" not in str(refused.value)


def test_an_image_of_another_version_refuses_to_train_and_writes_the_reason_for_sagemaker(aws: Addresses, tmp_path: Path) -> None:
    from animl_pipeline.integrations.sagemaker_training.job_spec import JobSpec

    settings = settings_in(tmp_path, "other")
    store = open_store(settings)
    crops, splits = crops_and_splits(store)
    spec = JobSpec(key="0" * 16, plan=plan_on_sagemaker(), crops=crops, splits=splits)
    store.object_store.put("jobs/x/spec.json", spec.model_dump_json(by_alias=True).encode())
    for location, words in {"jobs/x/spec.json": "another version", "jobs/y/spec.json": "has no jobs/y/spec.json"}.items():
        (tmp_path / "input/config").mkdir(parents=True, exist_ok=True)
        (tmp_path / "input/config/hyperparameters.json").write_text(json.dumps({"store": settings.store, "spec": location}))
        assert run_job(tmp_path) == 1
        assert words in (tmp_path / "output/failure").read_text()


def test_the_local_sagemaker_refuses_what_aws_refuses(aws: Addresses) -> None:
    from animl_pipeline.integrations.sagemaker_training.job_spec import job_request

    client: Any = boto3.client("sagemaker")
    asked: dict[str, Any] = dict(job_request("refused-1", "refused", plan_on_sagemaker(), settings_in(Path(), "p")))
    for change, words in [
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59}}, "MaxWaitTimeInSeconds"),
        ({"ResourceConfig": asked["ResourceConfig"] | {"InstanceType": "ml.huge"}}, "enum value set"),
        ({"TrainingJobName": "-"}, "trainingJobName"),
    ]:
        with pytest.raises(ClientError, match=words):
            client.create_training_job(**(asked | change))
    with pytest.raises(ClientError, match="Could not find"):
        client.describe_training_job(TrainingJobName="nobody")


def test_the_task_trains_where_the_plan_says(aws: Addresses, tmp_path: Path) -> None:
    from tasks.store_and_data_paths import resolve_run_paths
    from tasks.training import check_training_preconditions, train_classifier

    paths = resolve_run_paths(str(tmp_path / "store"))
    with pytest.raises(SettingsError):
        check_training_preconditions.fn(plan_on_sagemaker(), paths)
    with pytest.raises(SettingsError):
        train_classifier.fn(*crops_and_splits(open_store(settings_at(tmp_path))), plan_on_sagemaker(), None, paths)


def test_a_job_that_disappears_is_retryable(aws: Addresses) -> None:
    from animl_pipeline.integrations.sagemaker_training.job import _describe_job

    with pytest.raises(TrainingInterruptedError) as failed:
        _describe_job(boto3.client("sagemaker"), "island-0-1")
    assert failed.value.code == "job_disappeared"
    assert failed.value.retryable


@pytest.mark.parametrize(
    ("reason", "retryable"),
    [
        ("InternalServerError: please try again", True),
        ("AlgorithmError: temporary failure: the store does not answer", True),
        ("AlgorithmError", False),
    ],
)
def test_a_temporary_failure_of_a_job_is_retryable(reason: str, retryable: bool) -> None:
    from animl_pipeline.integrations.sagemaker_training.job import _check_result

    with pytest.raises(TrainingError) as failed:
        _check_result({"TrainingJobStatus": "Failed", "SecondaryStatus": "Failed", "FailureReason": reason}, "island-0-1")
    assert failed.value.retryable == retryable
