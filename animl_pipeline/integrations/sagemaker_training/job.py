"""Start a training job or take over a running one, wait for it, and fetch its result."""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ReleaseError, TrainingError, TrainingInterruptedError
from animl_pipeline.core.progress import track
from animl_pipeline.integrations.aws_calls import error_code, explain_aws_errors, retrying_config
from animl_pipeline.integrations.sagemaker_training.job_spec import JobSpec, check_job_settings, job_folder, job_request, key_prefix
from animl_pipeline.storage.store import StepOutput, Store, Workspace

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient

log = logging.getLogger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 0.2, 15
SETUP_S = 1800
"""Time to start an instance and pull the image, in addition to the job's own limits."""
RUNNING = frozenset({"InProgress", "Stopping"})
TEMPORARY_FAILURE = "temporary failure: "
"""The beginning of a failure reason from the container if another try may succeed."""
INTERRUPTED = ("InternalServerError", TEMPORARY_FAILURE)
JobDescription = Mapping[str, Any]
"""The answer to DescribeTrainingJob."""

_lock = threading.Lock()
_awaited_jobs: set[str] = set()


def build_in_job(
    crops: Artifact, splits: Artifact, plan: Plan, store: Store, settings: Settings, embeddings: Artifact | None = None
) -> Callable[[Workspace, Callable[[Workspace], StepOutput]], StepOutput]:
    """A function that builds the training step in a SageMaker job, for ``train_classifier(build_with=…)``.

    The function raises:
        TrainingError: the job failed, was stopped or took too long; the message has SageMaker's or the container's reason.
        TrainingInterruptedError: the job disappeared, or its failure is temporary.
        AwsUnreachableError: AWS does not answer; the job keeps running.
        SettingsError: the store is a folder, or image or role are not set.
        WeightsError: the weights are a file of this machine.
    """

    def build(space: Workspace, _train_here: Callable[[Workspace], StepOutput]) -> StepOutput:
        import boto3

        check_job_settings(plan, settings)
        key = key_prefix(space)
        base_name = f"{plan.model}-{key}"
        spec = JobSpec(key=key, plan=plan, crops=crops, splits=splits, embeddings=embeddings)
        store.object_store.put(f"{job_folder(base_name)}/spec.json", spec.model_dump_json(by_alias=True).encode())
        client = boto3.client("sagemaker", config=retrying_config())
        name = _find_running_job(client, base_name) or _start_job(client, base_name, plan, settings)
        with _stop_with_process(name):
            job = _wait_for_job(client, name, plan)
        _check_result(job, name)
        return _fetch_result(base_name, store, space)

    return build


def stop_jobs() -> None:
    """Ask SageMaker to stop all jobs that this process waits for. It takes a few seconds and loses nothing: checkpoints stay."""
    with _lock:
        names = sorted(_awaited_jobs)
        _awaited_jobs.clear()
    if not names:
        return
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("sagemaker", config=Config(connect_timeout=2, read_timeout=3, retries={"mode": "standard", "max_attempts": 1}))
    for name in names:
        try:
            client.stop_training_job(TrainingJobName=name)
            log.info("stopping the training job %s", name)
        except (BotoCoreError, ClientError) as e:
            log.warning("the training job %s cannot be stopped (%s); it keeps running, and the next run takes it over", name, e)


@contextmanager
def _stop_with_process(name: str) -> Iterator[None]:
    """Stop the job if this process is stopped. After an error in this process the job keeps running and is taken over later."""
    with _lock:
        _awaited_jobs.add(name)
    try:
        yield
    except Exception:
        raise
    except BaseException:
        stop_jobs()
        raise
    finally:
        with _lock:
            _awaited_jobs.discard(name)


def _find_running_job(client: SageMakerClient, base_name: str) -> str:
    """Name of the step's running job, "" if there is none. If the newest job is stopping, this waits for its end."""
    jobs = _list_jobs(client, base_name)
    if not jobs or jobs[0]["TrainingJobStatus"] not in RUNNING:
        return ""
    name = str(jobs[0]["TrainingJobName"])
    if jobs[0]["TrainingJobStatus"] == "InProgress":
        log.info("the training job %s is running already; waiting for it", name)
        return name
    log.info("the training job %s is stopping; waiting for its end", name)
    for _ in _poll_job(client, name, SETUP_S):
        pass
    return ""


def _list_jobs(client: SageMakerClient, base_name: str) -> list[JobDescription]:
    """All jobs of a step, the newest first."""
    with _translate_aws_errors(f"the training jobs {base_name}"):
        pages = client.get_paginator("list_training_jobs").paginate(NameContains=base_name, SortBy="CreationTime", SortOrder="Descending")
        jobs: list[JobDescription] = [job for page in pages for job in page["TrainingJobSummaries"]]
    return [job for job in jobs if re.fullmatch(rf"{re.escape(base_name)}-\d+", job["TrainingJobName"])]


def _start_job(client: SageMakerClient, base_name: str, plan: Plan, settings: Settings) -> str:
    """Start a job and return its name. The name is new: SageMaker keeps the names of jobs that ended."""
    numbers = [int(job["TrainingJobName"].rpartition("-")[2]) for job in _list_jobs(client, base_name)]
    name = f"{base_name}-{1 + max(numbers, default=0)}"
    with _translate_aws_errors(f"the training job {name}"):
        client.create_training_job(**job_request(name, base_name, plan, settings))
    config = plan.train.sagemaker
    log.info("training on SageMaker: %s on %s%s", name, config.instance, ", spot capacity" if config.spot else "")
    return name


def _wait_for_job(client: SageMakerClient, name: str, plan: Plan) -> JobDescription:
    """The description of the job after its end. Its states and metrics are logged on the way."""
    config = plan.train.sagemaker
    limit_s = (config.max_hours + (config.wait_hours if config.spot else 0)) * 3600 + SETUP_S
    job: JobDescription = {}
    state, epoch = "", 0
    with track("training epochs on SageMaker", plan.train.epochs) as advance:
        for job in _poll_job(client, name, limit_s):
            if job["SecondaryStatus"] != state:
                state = job["SecondaryStatus"]
                log.info("%s: %s", name, state)
            metrics = {m["MetricName"]: m["Value"] for m in job.get("FinalMetricDataList", [])}
            if (now := int(metrics.pop("epoch", 0))) > epoch:
                advance(now - epoch)
                epoch = now
                log.info("%s: epoch %d of %d, %s", name, epoch, plan.train.epochs, ", ".join(f"{n} {v:.3f}" for n, v in metrics.items()))
    return job


def _poll_job(client: SageMakerClient, name: str, limit_s: float) -> Iterator[JobDescription]:
    """The job's description again and again, until it has ended.

    Raises:
        TrainingInterruptedError: the job does not exist any more.
        TrainingError: it has not ended after ``limit_s`` seconds; SageMaker is asked to stop it.
    """
    deadline, pause = time.monotonic() + limit_s, FIRST_PAUSE_S
    while True:
        job = _describe_job(client, name)
        yield job
        if job["TrainingJobStatus"] not in RUNNING:
            return
        if time.monotonic() > deadline:
            stop_jobs()
            message = f"the training job {name} was still {job['SecondaryStatus']} after {limit_s / 3600:.1f} h and is being stopped"
            raise TrainingError(f"{message}; raise train.sagemaker.max_hours or wait_hours, or read its log in CloudWatch", code="job_too_long")
        time.sleep(pause)
        pause = min(pause * 1.1, MAX_PAUSE_S)


def _describe_job(client: SageMakerClient, name: str) -> JobDescription:
    from botocore.exceptions import ClientError

    with _translate_aws_errors(f"the training job {name}"):
        try:
            return client.describe_training_job(TrainingJobName=name)
        except ClientError as e:
            missing = error_code(e) == "ValidationException" and re.search("not found|could not find", str(e), re.IGNORECASE)
            if not missing:
                raise
            raise TrainingInterruptedError(f"the training job {name} does not exist any more; run it again", code="job_disappeared") from e


def _check_result(job: JobDescription, name: str) -> None:
    """Check that a job that has ended was successful.

    Raises:
        TrainingError: it was not.
        TrainingInterruptedError: its failure is temporary.
    """
    if job["TrainingJobStatus"] == "Completed":
        return
    reason = " ".join(job.get("FailureReason", "").split())
    again = "run it again, it continues from its last checkpoint"
    if any(text in reason for text in INTERRUPTED):
        raise TrainingInterruptedError(f"the training job {name} was interrupted: {reason}; {again}", code="job_interrupted")
    if job["SecondaryStatus"] == "MaxRuntimeExceeded":
        raise TrainingError(f"the training job {name} reached its time limit; raise train.sagemaker.max_hours and {again}", code="job_too_long")
    if job["SecondaryStatus"] == "MaxWaitTimeExceeded":
        message = f"the training job {name} got no spot capacity in time; raise train.sagemaker.wait_hours, or set train.sagemaker.spot to false"
        raise TrainingError(message, code="no_capacity")
    if job["TrainingJobStatus"] == "Stopped":
        raise TrainingError(f"somebody stopped the training job {name}; {again}", code="job_stopped")
    message = f"the training job {name} failed: {reason or 'SageMaker gives no reason; read its log in CloudWatch'}"
    if reason.startswith("CapacityError"):
        raise TrainingError(f"{message}; set train.sagemaker.instance to another type, or train.sagemaker.spot to false", code="no_capacity")
    raise TrainingError(message, code="job_failed")


def _fetch_result(base_name: str, store: Store, space: Workspace) -> StepOutput:
    """Copy the job's files into the workspace, and delete the job's folder in the store."""
    data = store.object_store.read(f"{job_folder(base_name)}/result.json")
    if data is None:
        message = f"the training job {base_name} has completed, but the store at {store.object_store} has no result of it; run it again"
        raise TrainingInterruptedError(message, code="no_result")
    manifest = store.manifest(Artifact.model_validate_json(data))
    for name in manifest.files:
        shutil.copyfile(store.path(manifest.artifact(cached=True), name), space.out / name)
    store.object_store.delete_many(list(store.object_store.names(f"{job_folder(base_name)}/")))
    return StepOutput(manifest.counts, manifest.blobs, manifest.final, manifest.blob_digests)


@contextmanager
def _translate_aws_errors(what: str) -> Iterator[None]:
    """Turn what AWS refuses into a TrainingError. An error of the network stays AwsUnreachableError, which is retryable."""
    try:
        with explain_aws_errors(what):
            yield
    except ReleaseError as e:
        if e.retryable:
            raise
        raise TrainingError(str(e), code=e.code) from e
