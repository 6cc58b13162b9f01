"""Training jobs: the container's program as a process, in a folder that stands for /opt/ml.

::

    CreateTrainingJob:  InProgress (Starting → Training → Uploading) → Completed, or Failed with a FailureReason
    a spot interruption: Training → Interrupted → Restarting → Training, with the checkpoints in S3
    StopTrainingJob:    Stopping → Stopped

As in SageMaker, checkpoints are copied from S3 before the program starts, and to S3 while it runs. An interrupted program
starts again in a new, empty folder. Metrics are read from its output with the job's MetricDefinitions.
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
from animl_pipeline.dev.sagemaker_local.fault_injection import FaultSwitches
from animl_pipeline.dev.sagemaker_local.state_file import StateFile
from animl_pipeline.dev.sagemaker_local.training_process import CheckpointSync, TrainingProcess

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

KIND = "training-job"
POLL_S = 0.05
"""Seconds between two checks of a running program."""
SUMMARY = ("CreationTime", "TrainingEndTime", "LastModifiedTime", "TrainingJobStatus", "SecondaryStatus")


class TrainingJobs:
    """The operations on training jobs, and a thread for each running job."""

    def __init__(self, state: Path, state_file: StateFile, s3: S3Client, faults: FaultSwitches, ended: threading.Event) -> None:
        self.state = state
        self.state_file = state_file
        self.s3 = s3
        self.faults = faults
        self.ended = ended
        self._threads: list[threading.Thread] = []

    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """The supported operations by name."""
        return {
            "CreateTrainingJob": self._create, "DescribeTrainingJob": self._describe, "StopTrainingJob": self._stop, "ListTrainingJobs": self._list,
        }  # fmt: skip

    def resume(self) -> None:
        """Continue the jobs that were running when an earlier server stopped."""
        for name, job in self.state_file.entries(KIND).items():
            if job["TrainingJobStatus"] == "Stopping":
                self._set_status(name, "Stopped", TrainingJobStatus="Stopped", TrainingEndTime=time.time())
            elif job["TrainingJobStatus"] == "InProgress":
                self._start_job(name)

    def end(self) -> None:
        """Wait until all programs have ended; ``ended`` is already set."""
        for thread in self._threads:
            thread.join(15)

    # -- operations --------------------------------------------------------------------------------------------------

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TrainingJobName"]
        _check(request)
        if name in self.state_file.entries(KIND):
            raise ApiError("ResourceInUse", f"Training job names must be unique within an AWS account and region, and a training job with this name "
                           f"already exists ({arn(KIND, name)})")  # fmt: skip
        tags = request.pop("Tags", None)
        now = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting", "SecondaryStatusTransitions": [_transition("Starting")]}
        made = self.state_file.add(KIND, name, request | now, tags)
        self._start_job(name)
        return {"TrainingJobArn": made}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TrainingJobName"]
        return self.state_file.get(KIND, name) | {"TrainingJobArn": arn(KIND, name)}

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["TrainingJobName"]
        with self.state_file.lock:
            status = self.state_file.get(KIND, name)["TrainingJobStatus"]
            if status not in {"InProgress", "Stopping"}:
                raise invalid(f"The request was rejected because the training job is in status {status}.")
            self._set_status(name, "Stopping", TrainingJobStatus="Stopping")
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        """Jobs by time of creation, by default the newest first; one page."""
        wanted = request.get("NameContains", "").lower()
        found = [(n, j) for n, j in self.state_file.entries(KIND).items() if wanted in n.lower()]
        found = [(n, j) for n, j in found if j["TrainingJobStatus"] == request.get("StatusEquals", j["TrainingJobStatus"])]
        if request.get("SortOrder", "Descending") == "Descending":
            found.reverse()
        begin, size = int(request.get("NextToken", "0")), request.get("MaxResults", 10)
        page = [
            {"TrainingJobName": n, "TrainingJobArn": arn(KIND, n), **{k: j[k] for k in SUMMARY if k in j}} for n, j in found[begin : begin + size]
        ]
        return {"TrainingJobSummaries": page} | ({"NextToken": str(begin + size)} if begin + size < len(found) else {})

    # -- a job -------------------------------------------------------------------------------------------------------

    def _start_job(self, name: str) -> None:
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
                self._set_status(name, "Interrupted")
                self._set_status(name, "Restarting")
        except Exception as e:
            log.exception("%s failed", name)
            self._failed(name, f"InternalServerError: {type(e).__name__}: {e}")
            return
        log.info("%s: %s", name, end)

    def _attempt(self, name: str, folder: Path, began: float) -> str:
        """One start of the program to its end; what came of it."""
        job = self.state_file.get(KIND, name)
        if self.faults.happens("no_capacity"):
            return self._failed(
                name, "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
            )
        if self.faults.happens("training_cannot_start"):
            return self._failed(
                name, "AlgorithmError: CannotStartContainerError. Please ensure the container can be run with 'docker run <image> train'."
            )
        checkpoints = CheckpointSync(job.get("CheckpointConfig"), folder, self.s3)
        checkpoints.download()
        program = TrainingProcess(job, folder, self.s3)
        self._set_status(name, "Training", TrainingStartTime=time.time())
        while program.alive():
            self._read_metrics(name, job, program)
            uploaded = checkpoints.upload()
            if self.ended.wait(POLL_S):
                program.end()
                return "continued by the next server"
            if uploaded and job.get("EnableManagedSpotTraining") and self.faults.happens("spot_interruptions"):
                program.end()
                checkpoints.upload()
                return "Interrupted"
            if self.state_file.get(KIND, name)["TrainingJobStatus"] == "Stopping":
                program.end()
                checkpoints.upload()
                return self._finish(name, "Stopped", "Stopped")
            if time.monotonic() - began > job["StoppingCondition"]["MaxRuntimeInSeconds"]:
                program.end()
                checkpoints.upload()
                return self._finish(name, "Stopped", "MaxRuntimeExceeded")
        checkpoints.upload()
        self._read_metrics(name, job, program)
        if program.status():
            return self._failed(name, f"AlgorithmError: {program.reason()}, exit code: {program.status()}")
        self._set_status(name, "Uploading")
        return self._finish(name, "Completed", "Completed")

    def _read_metrics(self, name: str, job: dict[str, Any], program: TrainingProcess) -> None:
        """Store the last value of each metric in the program's output."""
        text = program.output()
        found = {}
        for metric in job["AlgorithmSpecification"].get("MetricDefinitions", []):
            values = re.findall(metric["Regex"], text)
            if values:
                found[metric["Name"]] = float(values[-1])
        known = {m["MetricName"]: m["Value"] for m in self.state_file.get(KIND, name).get("FinalMetricDataList", [])}
        if found and found != known:
            now = time.time()
            self.state_file.change(KIND, name, FinalMetricDataList=[{"MetricName": n, "Value": v, "Timestamp": now} for n, v in found.items()])

    def _failed(self, name: str, reason: str) -> str:
        self._finish(name, "Failed", "Failed", FailureReason=reason[:1024])
        return reason

    def _finish(self, name: str, status: str, secondary: str, **more: Any) -> str:
        self._set_status(name, secondary, TrainingJobStatus=status, TrainingEndTime=time.time(), **more)
        return secondary

    def _set_status(self, name: str, secondary: str, **more: Any) -> None:
        """Set a job's secondary status; a job that is being stopped does not return to training."""
        with self.state_file.lock:
            job = self.state_file.get(KIND, name)
            if job["TrainingJobStatus"] == "Stopping" and "TrainingJobStatus" not in more:
                return
            transitions = [*job["SecondaryStatusTransitions"], _transition(secondary)]
            self.state_file.change(KIND, name, SecondaryStatus=secondary, SecondaryStatusTransitions=transitions, **more)


def _transition(status: str) -> dict[str, Any]:
    return {"Status": status, "StartTime": time.time()}


def _check(request: dict[str, Any]) -> None:
    """Check what the service checks beyond the shapes of its description."""
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
        raise invalid("The local SageMaker does not support input channels.")
    if algorithm.get("ContainerEntrypoint", [])[:2] != ["python", "-m"]:
        raise invalid("The local SageMaker starts ContainerEntrypoint: python -m MODULE, of this installation.")
