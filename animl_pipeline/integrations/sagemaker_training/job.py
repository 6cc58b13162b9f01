"""One training job from its start (or from where another run left it) to what it made."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError, TrainingError
from animl_pipeline.core.progress import track
from animl_pipeline.core.records import Artifact
from animl_pipeline.deploy.aws_errors import patient, spoken
from animl_pipeline.integrations.sagemaker_training.job_spec import Order, base_of, check_ready, folder_of, key_of, request
from animl_pipeline.integrations.sagemaker_training.stop_jobs import stop_jobs, waited, waiting_for
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

if TYPE_CHECKING:
    from mypy_boto3_sagemaker import SageMakerClient

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 15
SLACK_S = 1800
"""Beside the job's own limits: starting a machine, fetching the image."""
UNDER_WAY = frozenset({"InProgress", "Stopping"})
Described = Mapping[str, Any]


def made_by_job(
    crops: Artifact, splits: Artifact, plan: Plan, store: Store, settings: Settings, space: Workspace, _train: Callable[[Workspace], StepOutput]
) -> StepOutput:
    """Have a job make the step, and put its files into the workspace.

    Raises:
        TrainingError: it did not.
        SettingsError: it cannot.
    """
    check_ready(plan, settings)
    base = base_of(plan, space)
    order = Order(key=key_of(space), plan=plan, crops=crops, splits=splits)
    store.object_store.put(f"{folder_of(base)}/order.json", order.model_dump_json(by_alias=True).encode())
    import boto3

    client = boto3.client("sagemaker", config=patient())
    name = _under_way(client, base) or _started(client, base, plan, settings)
    with _stopped_with_us(name):
        ended = _followed(client, name, plan)
    _check(ended, name)
    return _fetched(base, store, space)


def _under_way(client: SageMakerClient, base: str) -> str:
    """The job of this step that runs already, "" where none does; one that is stopping is waited for."""
    while True:
        newest = next(iter(_jobs(client, base)), None)
        if newest is None or newest["TrainingJobStatus"] not in UNDER_WAY:
            return ""
        name = str(newest["TrainingJobName"])
        if newest["TrainingJobStatus"] == "InProgress":
            log.info("the training job %s runs already; taken over", name)
            return name
        log.info("the training job %s is stopping; waiting for its end", name)
        for _ in _looks(client, name, SLACK_S):
            pass


def _jobs(client: SageMakerClient, base: str) -> list[Described]:
    """All jobs of a step, the newest first."""
    with _asked(f"the training jobs {base}"):
        pages = client.get_paginator("list_training_jobs").paginate(NameContains=base, SortBy="CreationTime", SortOrder="Descending")
        found: list[Described] = [job for page in pages for job in page["TrainingJobSummaries"]]
    return [job for job in found if re.fullmatch(rf"{re.escape(base)}-\d+", job["TrainingJobName"])]


def _started(client: SageMakerClient, base: str, plan: Plan, settings: Settings) -> str:
    """A new job; its name, which no job ever had, since SageMaker keeps those of jobs that ended."""
    name = f"{base}-{1 + max((int(j['TrainingJobName'].rpartition('-')[2]) for j in _jobs(client, base)), default=0)}"
    with _asked(f"the training job {name}"):
        client.create_training_job(**request(name, base, plan, settings))
    spec = plan.train.sagemaker
    log.info("training on SageMaker: %s on %s%s", name, spec.instance, ", spare capacity" if spec.spot else "")
    return name


@contextmanager
def _stopped_with_us(name: str) -> Iterator[None]:
    """The job is stopped when this process is told to stop; after a fault of this process it trains on, and is taken over later."""
    waiting_for(name)
    try:
        yield
    except Exception:
        raise
    except BaseException:
        stop_jobs()
        raise
    finally:
        waited(name)


def _followed(client: SageMakerClient, name: str, plan: Plan) -> Described:
    """The job as it is at its end; on the way its states and figures are told.

    Raises:
        TrainingError: it does not come to an end.
    """
    spec = plan.train.sagemaker
    limit = (spec.max_hours + (spec.wait_hours if spec.spot else 0)) * 3600 + SLACK_S
    job: Described = {}
    state, epoch = "", 0
    with track("training epochs on SageMaker", plan.train.epochs) as step:
        for job in _looks(client, name, limit):
            if job["SecondaryStatus"] != state:
                state = job["SecondaryStatus"]
                log.info("%s: %s", name, state)
            figures = _figures(job)
            if (now := int(figures.pop("epoch", 0))) > epoch:
                step(now - epoch)
                epoch = now
                log.info("%s: epoch %d of %d, %s", name, epoch, plan.train.epochs, ", ".join(f"{n} {v:.3f}" for n, v in figures.items()))
    return job


def _figures(job: Described) -> dict[str, float]:
    """The last value of each metric."""
    return {m["MetricName"]: m["Value"] for m in job.get("FinalMetricDataList", [])}


def _looks(client: SageMakerClient, name: str, limit_s: float) -> Iterator[Described]:
    """The job as it is, again and again, the last time when it has ended.

    Raises:
        TrainingError: it has not ended after ``limit_s`` seconds; it was told to stop.
    """
    deadline, pause = time.monotonic() + limit_s, FIRST_PAUSE_S
    while True:
        with _asked(f"the training job {name}"):
            job: Described = client.describe_training_job(TrainingJobName=name)
        yield job
        if job["TrainingJobStatus"] not in UNDER_WAY:
            return
        if time.monotonic() > deadline:
            stop_jobs()
            raise TrainingError(
                f"the training job {name} was still {job['SecondaryStatus']} after {limit_s / 3600:.1f} h and was told to stop;"
                " raise train.sagemaker.max_hours or wait_hours, or look at its log in CloudWatch"
            )
        time.sleep(pause)
        pause = min(pause * 1.1, LAST_PAUSE_S)


def _check(job: Described, name: str) -> None:
    """See that a job that has ended did what it should.

    Raises:
        TrainingError: else, with what to do.
    """
    if job["TrainingJobStatus"] == "Completed":
        return
    why = " ".join(job.get("FailureReason", "").split())
    again = "run it again, it goes on from its last checkpoint"
    if job["SecondaryStatus"] == "MaxRuntimeExceeded":
        raise TrainingError(f"the training job {name} ran as long as it may; raise train.sagemaker.max_hours and {again}")
    if job["SecondaryStatus"] == "MaxWaitTimeExceeded":
        raise TrainingError(f"the training job {name} found no spare capacity in time; raise train.sagemaker.wait_hours, or set spot to false")
    if job["TrainingJobStatus"] == "Stopped":
        raise TrainingError(f"the training job {name} was stopped by somebody; {again}")
    remedy = "; set train.sagemaker.instance to another, or spot to false" if why.startswith("CapacityError") else ""
    raise TrainingError(f"the training job {name} failed: {why or 'SageMaker names no reason; look at its log in CloudWatch'}{remedy}")


def _fetched(base: str, store: Store, space: Workspace) -> StepOutput:
    """Put what the job made into the workspace, and clear away what only the job needed."""
    told = store.object_store.read(f"{folder_of(base)}/made.json")
    if told is None:
        raise TrainingError(f"the job of {base} ended well, but the store at {store.object_store} lacks its answer; run it again")
    made = Artifact.model_validate_json(told)
    manifest = store.manifest(made)
    for name in manifest.files:
        shutil.copyfile(store.path(made, name), space.out / name)
    store.object_store.delete_all(list(store.object_store.names(f"{folder_of(base)}/")))
    return StepOutput(manifest.counts, manifest.blobs, manifest.final)


@contextmanager
def _asked(what: str) -> Iterator[None]:
    """What AWS refuses, as one line."""
    try:
        with spoken(what):
            yield
    except ReleaseError as e:
        raise TrainingError(str(e)) from e
