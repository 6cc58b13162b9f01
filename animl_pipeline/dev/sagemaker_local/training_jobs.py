"""Training jobs: the container's own program as a process in a folder that stands for /opt/ml.

::

    CreateTrainingJob:  InProgress (Starting → Training → Uploading) → Completed, or Failed with a FailureReason
    a spot interruption: Training → Interrupted → Restarting → Training, with the checkpoints that S3 has
    StopTrainingJob:    Stopping → Stopped

Checkpoints are copied to S3 while the program runs and from there before it starts, as SageMaker does; an interrupted program
starts in a new, empty folder. Metrics are read from what it writes, by the job's own MetricDefinitions.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animl_pipeline.dev.sagemaker_local.api_validation import ApiError, arn, invalid
from animl_pipeline.dev.sagemaker_local.fault_injection import Knobs
from animl_pipeline.dev.sagemaker_local.state_file import Ledger
from animl_pipeline.dev.sagemaker_local.training_process import Copies, JobProgram

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

KIND = "training-job"
LOOK_S = 0.05
"""Between two looks at a running program."""
SUMMARY = ("CreationTime", "TrainingEndTime", "LastModifiedTime", "TrainingJobStatus", "SecondaryStatus")


class Jobs:
    """The operations on training jobs, and a thread for each job that runs."""

    def __init__(self, state: Path, ledger: Ledger, s3: S3Client, knobs: Knobs, ended: threading.Event) -> None:
        self.state = state
        self.ledger = ledger
        self.s3 = s3
        self.knobs = knobs
        self.ended = ended
        self._threads: list[threading.Thread] = []

    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """What is spoken, by its name."""
        return {
            "CreateTrainingJob": self._create, "DescribeTrainingJob": self._describe, "StopTrainingJob": self._stop, "ListTrainingJobs": self._list,
        }  # fmt: skip

    def resume(self) -> None:
        """Go on with the jobs that were under way when an earlier server ended."""
        for name, job in self.ledger.every(KIND).items():
            if job["TrainingJobStatus"] == "Stopping":
                self._to(name, "Stopped", TrainingJobStatus="Stopped", TrainingEndTime=time.time())
            elif job["TrainingJobStatus"] == "InProgress":
                self._begin(name)

    def end(self) -> None:
        """Wait until all programs are gone; ``ended`` is set by then."""
        for thread in self._threads:
            thread.join(15)

    # -- operations --------------------------------------------------------------------------------------------------

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TrainingJobName"]
        _check(request)
        if name in self.ledger.every(KIND):
            raise ApiError("ResourceInUse", f"Training job names must be unique within an AWS account and region, and a training job with this name "
                           f"already exists ({arn(KIND, name)})")  # fmt: skip
        tags = request.pop("Tags", None)
        now = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting", "SecondaryStatusTransitions": [_transition("Starting")]}
        made = self.ledger.add(KIND, name, request | now, tags)
        self._begin(name)
        return {"TrainingJobArn": made}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TrainingJobName"]
        return self.ledger.get(KIND, name) | {"TrainingJobArn": arn(KIND, name)}

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TrainingJobName"]
        with self.ledger.lock:
            status = self.ledger.get(KIND, name)["TrainingJobStatus"]
            if status not in {"InProgress", "Stopping"}:
                raise invalid(f"The request was rejected because the training job is in status {status}.")
            self._to(name, "Stopping", TrainingJobStatus="Stopping")
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        """By time of creation, the newest first unless asked otherwise; a page at a time."""
        wanted = request.get("NameContains", "").lower()
        found = [(n, j) for n, j in self.ledger.every(KIND).items() if wanted in n.lower()]
        found = [(n, j) for n, j in found if j["TrainingJobStatus"] == request.get("StatusEquals", j["TrainingJobStatus"])]
        if request.get("SortOrder", "Descending") == "Descending":
            found.reverse()
        begin, size = int(request.get("NextToken", "0")), request.get("MaxResults", 10)
        page = [
            {"TrainingJobName": n, "TrainingJobArn": arn(KIND, n), **{k: j[k] for k in SUMMARY if k in j}} for n, j in found[begin : begin + size]
        ]
        return {"TrainingJobSummaries": page} | ({"NextToken": str(begin + size)} if begin + size < len(found) else {})

    # -- a job -------------------------------------------------------------------------------------------------------

    def _begin(self, name: str) -> None:
        thread = threading.Thread(target=self._run, args=(name,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, name: str) -> None:
        """A job to its end, whatever it is."""
        began = time.monotonic()
        number = 0
        try:
            while True:
                number += 1
                end = self._attempt(name, self.state / "jobs" / f"{name}-{number}-{time.time_ns()}", began)
                if end != "Interrupted":
                    break
                self._to(name, "Interrupted")
                self._to(name, "Restarting")
        except Exception as e:
            log.exception("%s failed", name)
            self._failed(name, f"InternalServerError: {type(e).__name__}: {e}")
            return
        log.info("%s: %s", name, end)

    def _attempt(self, name: str, folder: Path, began: float) -> str:
        """One start of the program to its end; what came of it."""
        job = self.ledger.get(KIND, name)
        if self.knobs.strikes("no_capacity"):
            return self._failed(
                name, "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
            )
        if self.knobs.strikes("training_cannot_start"):
            return self._failed(
                name, "AlgorithmError: CannotStartContainerError. Please ensure the container can be run with 'docker run <image> train'."
            )
        copies = Copies(job.get("CheckpointConfig"), folder, self.s3)
        copies.fetch()
        program = JobProgram(job, folder, self.s3)
        self._to(name, "Training", TrainingStartTime=time.time())
        while program.alive():
            self._read_metrics(name, job, program)
            copied = copies.send()
            if self.ended.wait(LOOK_S):
                program.end()
                return "kept for the next server"
            if copied and job.get("EnableManagedSpotTraining") and self.knobs.strikes("spot_interruptions"):
                program.end()
                copies.send()
                return "Interrupted"
            if self.ledger.get(KIND, name)["TrainingJobStatus"] == "Stopping":
                program.end()
                copies.send()
                return self._over(name, "Stopped", "Stopped")
            if time.monotonic() - began > job["StoppingCondition"]["MaxRuntimeInSeconds"]:
                program.end()
                copies.send()
                return self._over(name, "Stopped", "MaxRuntimeExceeded")
        copies.send()
        self._read_metrics(name, job, program)
        if program.status():
            return self._failed(name, f"AlgorithmError: {program.reason()}, exit code: {program.status()}")
        self._to(name, "Uploading")
        return self._over(name, "Completed", "Completed")

    def _read_metrics(self, name: str, job: dict[str, Any], program: JobProgram) -> None:
        """The last value of each metric in what the program wrote, kept where it changed."""
        text = program.said()
        found = {}
        for metric in job["AlgorithmSpecification"].get("MetricDefinitions", []):
            values = re.findall(metric["Regex"], text)
            if values:
                found[metric["Name"]] = float(values[-1])
        known = {m["MetricName"]: m["Value"] for m in self.ledger.get(KIND, name).get("FinalMetricDataList", [])}
        if found and found != known:
            now = time.time()
            self.ledger.change(KIND, name, FinalMetricDataList=[{"MetricName": n, "Value": v, "Timestamp": now} for n, v in found.items()])

    def _failed(self, name: str, reason: str) -> str:
        self._over(name, "Failed", "Failed", FailureReason=reason[:1024])
        return reason

    def _over(self, name: str, status: str, secondary: str, **more: Any) -> str:
        self._to(name, secondary, TrainingJobStatus=status, TrainingEndTime=time.time(), **more)
        return secondary

    def _to(self, name: str, secondary: str, **more: Any) -> None:
        """Put a job into a secondary status; one that is told to stop does not go back to training."""
        with self.ledger.lock:
            job = self.ledger.get(KIND, name)
            if job["TrainingJobStatus"] == "Stopping" and "TrainingJobStatus" not in more:
                return
            transitions = [*job["SecondaryStatusTransitions"], _transition(secondary)]
            self.ledger.change(KIND, name, SecondaryStatus=secondary, SecondaryStatusTransitions=transitions, **more)


def _transition(status: str) -> dict[str, Any]:
    return {"Status": status, "StartTime": time.time()}


def _check(request: dict[str, Any]) -> None:
    """What the service checks beyond the shapes of its description."""
    algorithm = request.get("AlgorithmSpecification", {})
    limits = request.get("StoppingCondition") or {}
    if not algorithm.get("TrainingImage"):
        raise invalid("TrainingImage or AlgorithmName must be set in AlgorithmSpecification.")
    if not {"InstanceType", "InstanceCount", "VolumeSizeInGB"} <= set(request.get("ResourceConfig", {})):
        raise invalid("ResourceConfig needs InstanceType, InstanceCount and VolumeSizeInGB.")
    if "MaxRuntimeInSeconds" not in limits:
        raise invalid("StoppingCondition needs MaxRuntimeInSeconds.")
    waits = limits.get("MaxWaitTimeInSeconds")
    if request.get("EnableManagedSpotTraining") and (waits is None or waits < limits["MaxRuntimeInSeconds"]):
        raise invalid("Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds.")
    if not request.get("EnableManagedSpotTraining") and waits is not None:
        raise invalid("MaxWaitTimeInSeconds is for managed spot training only.")
    if request.get("InputDataConfig"):
        raise invalid("The local SageMaker fetches no input channels.")
    if algorithm.get("ContainerEntrypoint", [])[:2] != ["python", "-m"]:
        raise invalid("The local SageMaker starts ContainerEntrypoint: python -m MODULE, of this installation.")
