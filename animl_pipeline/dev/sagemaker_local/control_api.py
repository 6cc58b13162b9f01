"""SageMaker's control API: models, endpoint configs, endpoints, and the states of an endpoint (training jobs: ``training_jobs``).

::

    CreateEndpoint:  Creating → InService, or Failed with a FailureReason (then it can only be deleted)
    UpdateEndpoint:  Updating → InService with the new config, or InService with the old one and a FailureReason
    DeleteEndpoint:  Deleting → gone

An update starts the new program beside the old one, switches when the new one answers /ping, and stops the old one when it
has answered all its requests. No request is lost.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animl_pipeline.dev.sagemaker_local.api_validation import ApiError, arn, check_request, invalid
from animl_pipeline.dev.sagemaker_local.endpoint_processes import (
    VARIANT,
    EndpointProcess,
    Health,
    Reply,
    StartError,
    download_package,
    start_endpoint_process,
)
from animl_pipeline.dev.sagemaker_local.fault_injection import Faults, FaultSwitches
from animl_pipeline.dev.sagemaker_local.state_file import KINDS, StateFile
from animl_pipeline.dev.sagemaker_local.training_jobs import TrainingJobs

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger(__name__)

BUSY = {"Creating", "Updating", "Deleting"}
MAX_PAYLOAD = 25 * 1024 * 1024
"""No endpoint takes a larger request; a serverless one takes 4 MB (``faults.max_payload``)."""


class ControlApi:
    """The operations of the API, and the programs of the endpoints in service."""

    def __init__(self, state: Path, s3: S3Client, faults: Faults | None = None) -> None:
        self.state = state
        self.s3 = s3
        self.faults = FaultSwitches(faults or Faults())
        self.state_file = StateFile(state)
        self._running: dict[str, EndpointProcess] = {}
        self._lock = self.state_file.lock
        self._workers = ThreadPoolExecutor(8, thread_name_prefix="endpoint")
        self._numbers = itertools.count(1)
        self._ended = threading.Event()
        self.jobs = TrainingJobs(state, self.state_file, s3, self.faults, self._ended)

    def handle(self, operation: str, request: Any) -> dict[str, Any]:
        """The answer of one operation.

        Raises:
            ApiError: the request does not fit, or the operation is not supported.
        """
        known: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "CreateModel": self._create_model, "CreateEndpointConfig": self._create_config, "CreateEndpoint": self._create_endpoint,
            "UpdateEndpoint": self._update_endpoint, "DescribeEndpoint": self._describe_endpoint, "DeleteEndpoint": self._delete_endpoint,
            "DescribeModel": lambda r: self._describe_entry("model", r["ModelName"]),
            "DescribeEndpointConfig": lambda r: self._describe_entry("endpoint-config", r["EndpointConfigName"]),
            "DeleteModel": lambda r: self._delete_entry("model", r["ModelName"]),
            "DeleteEndpointConfig": lambda r: self._delete_entry("endpoint-config", r["EndpointConfigName"]),
            "ListModels": lambda r: self._list_entries("model", r), "ListEndpointConfigs": lambda r: self._list_entries("endpoint-config", r),
            "ListEndpoints": lambda r: self._list_entries("endpoint", r),
            "ListTags": lambda r: {"Tags": self.state_file.tags(r["ResourceArn"])}, "AddTags": self._add_tags,
            **self.jobs.operations(),
        }  # fmt: skip
        if operation not in known:
            raise ApiError("UnknownOperationException", f"{operation} is not supported by the local SageMaker")
        if self.faults.happens("throttled"):
            raise ApiError("ThrottlingException", "Rate exceeded")
        return known[operation](check_request(operation, request))

    def resume(self) -> None:
        """Restore the endpoints of an earlier run, and wait until they answer or have failed."""
        self.jobs.resume()
        for name, endpoint in self.state_file.entries("endpoint").items():
            if endpoint["EndpointStatus"] == "Deleting":
                self.state_file.remove("endpoint", name)
            elif endpoint["EndpointStatus"] != "Failed":
                self._restore(name, endpoint)

    def end(self) -> None:
        """Stop all programs; the state file keeps the endpoints for the next run."""
        self._ended.set()
        self._workers.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            running, self._running = self._running, {}
        for program in running.values():
            program.process.terminate()  # all at once
        for program in running.values():
            program.end(0)
        self.jobs.end()

    def invoke(self, name: str, body: bytes, headers: dict[str, str]) -> Reply:
        """The answer of an endpoint's program to a request.

        Raises:
            ApiError: as SageMaker's runtime: ValidationError, ThrottlingException, ModelError.
        """
        if self.faults.happens("invocations_throttled"):
            raise ApiError("ThrottlingException", "Rate exceeded")
        reply = self._answer(name, body, headers)
        if reply.status != 200:
            raise self._model_error(name, reply.status, reply.body.decode(errors="replace"))
        return reply

    def _answer(self, name: str, body: bytes, headers: dict[str, str], *, again: bool = True) -> Reply:
        """The program's answer; if the program died during the request, the answer of a new one."""
        program = self._accepting_process(name)
        faults = self.faults.now()
        try:
            limit = faults.max_payload if program.serverless else MAX_PAYLOAD
            if len(body) > limit:
                raise ApiError("ValidationError", f"Request body of {len(body):,} bytes; this endpoint takes at most {limit:,}", 413)
            waited = self._delayed()
            if waited >= faults.answer_s:
                raise TimeoutError
            return program.request("POST", "/invocations", body, headers, faults.answer_s - waited)
        except TimeoutError as e:
            raise self._model_error(name, 0, "Your invocation timed out while waiting for a response from container primary.") from e
        except ApiError:
            raise
        except Exception as e:
            if not (again and program.has_ended(within_s=1)):
                raise self._model_error(name, 500, f"the program did not answer: {e}") from e
        finally:
            program.request_done()
        return self._answer(name, body, headers, again=False)

    def _delayed(self) -> float:
        """Wait for the fault ``answer_delay_s``, at most as long as an answer may take; returns the seconds waited."""
        began = time.monotonic()
        while (waited := time.monotonic() - began) < min(self.faults.now().answer_delay_s, self.faults.now().answer_s):
            if self._ended.wait(0.02):
                break
        return waited

    # -- operations --------------------------------------------------------------------------------------------------

    def _create_model(self, request: dict[str, Any]) -> dict[str, Any]:
        container: dict[str, Any] = request.get("PrimaryContainer") or next(iter(request.get("Containers", [])), {})
        if not request.get("ExecutionRoleArn"):
            raise invalid("1 validation error detected: Value null at 'executionRoleArn' failed to satisfy constraint: Member must not be null")
        if not container.get("Image"):
            raise invalid("Model container must specify Image.")
        self._find_model_data(container.get("ModelDataUrl", ""))
        request["PrimaryContainer"] = container
        return {"ModelArn": self.state_file.add("model", request["ModelName"], request, request.pop("Tags", None))}

    def _find_model_data(self, url: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        if not url.startswith("s3://"):
            raise invalid(f"Could not find model data at {url or '(no ModelDataUrl)'}: the local SageMaker reads s3:// addresses.")
        bucket, _, key = url.removeprefix("s3://").partition("/")
        try:
            self.s3.head_object(Bucket=bucket, Key=key)
        except (BotoCoreError, ClientError) as e:
            raise invalid(f"Could not find model data at {url}.") from e

    def _create_config(self, request: dict[str, Any]) -> dict[str, Any]:
        variants = request["ProductionVariants"]
        if len(variants) != 1:
            raise invalid(f"The local SageMaker serves one production variant, found {len(variants)}.")
        self.state_file.get("model", variants[0].get("ModelName", ""))
        if ("ServerlessConfig" in variants[0]) == ("InstanceType" in variants[0]):
            raise invalid("A production variant takes either ServerlessConfig or InstanceType and InitialInstanceCount.")
        if "InstanceType" in variants[0] and not variants[0].get("InitialInstanceCount"):
            raise invalid("InitialInstanceCount must be set for a production variant with an InstanceType.")
        return {"EndpointConfigArn": self.state_file.add("endpoint-config", request["EndpointConfigName"], request, request.pop("Tags", None))}

    def _create_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name, config = request["EndpointName"], request["EndpointConfigName"]
        self.state_file.get("endpoint-config", config)
        self._check_quota(name, config)
        entry = {"EndpointName": name, "EndpointConfigName": config, "EndpointStatus": "Creating"}
        made = self.state_file.add("endpoint", name, entry, request.get("Tags"))
        self._workers.submit(self._deploy, name, config, "Failed")
        return {"EndpointArn": made}

    def _update_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name, config = request["EndpointName"], request["EndpointConfigName"]
        with self._lock:
            self._check_not_busy(name)
            if self.state_file.get("endpoint", name)["EndpointStatus"] == "Failed":
                raise invalid(f'Cannot update endpoint "{arn("endpoint", name)}" that has failed; delete it and create it again.')
            self.state_file.get("endpoint-config", config)
            self._check_quota(name, config)
            self.state_file.change("endpoint", name, EndpointStatus="Updating", Target=config, FailureReason=None)
        self._workers.submit(self._deploy, name, config, "InService")
        return {"EndpointArn": arn("endpoint", name)}

    def _check_quota(self, name: str, config: str) -> None:
        """Refuse more serverless concurrency than the account may have."""
        used = sum(self._concurrency(e["EndpointConfigName"]) for n, e in self.state_file.entries("endpoint").items() if n != name)
        wanted, quota = self._concurrency(config), self.faults.now().quota_concurrency
        if used + wanted > quota:
            raise ApiError(
                "ResourceLimitExceeded",
                f"The account-level service limit '{QUOTA}' is {quota} Invocations, with current utilization of {used} Invocations and a "
                f"request delta of {wanted} Invocations. Please use AWS Service Quotas to request an increase for this quota.",
            )

    def _concurrency(self, config: str) -> int:
        known = self.state_file.entries("endpoint-config").get(config)
        return int(known["ProductionVariants"][0].get("ServerlessConfig", {}).get("MaxConcurrency", 0)) if known else 0

    def quotas(self) -> dict[str, Any]:
        """Service Quotas' answer to ListServiceQuotas."""
        quota = {"ServiceCode": "sagemaker", "ServiceName": "Amazon SageMaker", "QuotaCode": "L-LOCAL", "QuotaName": QUOTA}
        return {"Quotas": [quota | {"Value": float(self.faults.now().quota_concurrency), "Adjustable": True}]}

    def _describe_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        endpoint = self.state_file.get("endpoint", request["EndpointName"])
        target = endpoint.pop("Target", None)
        endpoint["EndpointArn"] = arn("endpoint", request["EndpointName"])
        if target:
            endpoint["PendingDeploymentSummary"] = {"EndpointConfigName": target}
        return endpoint

    def _delete_endpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["EndpointName"]
        with self._lock:
            self._check_not_busy(name)
            self.state_file.change("endpoint", name, EndpointStatus="Deleting")
        self._workers.submit(self._stop_endpoint, name)
        return {}

    def _describe_entry(self, kind: str, name: str) -> dict[str, Any]:
        entry = self.state_file.get(kind, name)
        entry.pop("LastModifiedTime")
        return entry | {f"{KINDS[kind]}Arn": arn(kind, name)}

    def _delete_entry(self, kind: str, name: str) -> dict[str, Any]:
        self.state_file.remove(kind, name)
        return {}

    def _list_entries(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        """The newest entries first, one page; the token is the number of entries before the page."""
        noun = KINDS[kind]
        wanted = request.get("NameContains", "").lower()
        found = [(n, e) for n, e in reversed(self.state_file.entries(kind).items()) if wanted in n.lower()]
        found = [(n, e) for n, e in found if e.get("EndpointStatus") == request.get("StatusEquals", e.get("EndpointStatus"))]
        begin, size = int(request.get("NextToken", "0")), request.get("MaxResults", 10)
        page = [{f"{noun}Name": n, f"{noun}Arn": arn(kind, n), **{k: e[k] for k in SUMMARY_FIELDS if k in e}} for n, e in found[begin : begin + size]]
        if kind != "endpoint":
            page = [{k: v for k, v in row.items() if k != "LastModifiedTime"} for row in page]
        more = {"NextToken": str(begin + size)} if begin + size < len(found) else {}
        return {f"{noun}s": page} | more

    def _add_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        self.state_file.tag(request["ResourceArn"], request["Tags"])
        return {"Tags": self.state_file.tags(request["ResourceArn"])}

    # -- programs ----------------------------------------------------------------------------------------------------

    def _deploy(self, name: str, config: str, on_failure: str) -> None:
        """Start ``config``'s program and switch the endpoint to it; on failure keep the old one and record the reason."""
        try:
            if self._ended.wait(self.faults.now().switch_s):
                return  # the next server finds the unfinished change and tries again
            if on_failure == "InService" and self.faults.happens("update_fails"):
                raise StartError("Request to service failed. If failure persists after retry, contact customer support.")
            program = self._start(name, config)
        except Exception as e:  # noqa: BLE001 - after any error the endpoint must leave its transitional state
            if self._ended.is_set():
                return  # the next server finds the unfinished change and tries again
            reason = str(e) if isinstance(e, StartError | ApiError) else f"Internal fault: {type(e).__name__}: {e}"
            log.warning("%s stays as it was: %s", name, reason)
            self.state_file.change("endpoint", name, EndpointStatus=on_failure, FailureReason=reason[:1024], Target=None)
            return
        with self._lock:
            old = self._running.get(name)
            self._running[name] = program
            self.state_file.change("endpoint", name, EndpointStatus="InService", EndpointConfigName=config, Target=None, FailureReason=None)
        log.info("%s serves %s", name, config)
        if old is not None:
            old.end()

    def _start(self, name: str, config: str) -> EndpointProcess:
        variant = self.state_file.get("endpoint-config", config)["ProductionVariants"][0]
        model = self.state_file.get("model", variant["ModelName"])
        folder = download_package(model["PrimaryContainer"]["ModelDataUrl"], self.state / "models", self.s3)
        if self.faults.happens("image_cannot_start"):
            raise StartError(
                f"CannotStartContainerError. Please ensure the model container for variant {VARIANT} starts correctly when invoked with "
                "'docker run <image> serve'"
            )
        log_file = self.state / "logs" / f"{name}-{next(self._numbers)}.log"
        health = Health(self.faults.now().ping_s, never=self.faults.happens("never_pings"))
        return start_endpoint_process(folder, log_file, variant.get("ServerlessConfig", {}).get("MaxConcurrency"), self._ended, health)

    def _restore(self, name: str, endpoint: dict[str, Any]) -> None:
        """Start the program that was in service, then repeat an update that was not finished."""
        target = endpoint.get("Target")
        self._deploy(name, endpoint["EndpointConfigName"], "Failed")
        if target and self.state_file.get("endpoint", name)["EndpointStatus"] == "InService":
            self.state_file.change("endpoint", name, EndpointStatus="Updating", Target=target)
            self._workers.submit(self._deploy, name, target, "InService")

    def _stop_endpoint(self, name: str) -> None:
        with self._lock:
            program = self._running.pop(name, None)
        if program is not None:
            program.end()
        self.state_file.remove("endpoint", name)

    def _check_not_busy(self, name: str) -> None:
        """Refuse changes of an endpoint that is being changed."""
        if self.state_file.get("endpoint", name)["EndpointStatus"] in BUSY:
            raise invalid(f'Cannot update in-progress endpoint "{arn("endpoint", name)}".')

    def _accepting_process(self, name: str) -> EndpointProcess:
        """The endpoint's program, which has accepted one more request; a program that died is restarted, as SageMaker does."""
        with self._lock:
            program = self._running.get(name)
            if program is None:
                raise ApiError("ValidationError", f"Endpoint {name} of account {arn('', '').split(':')[4]} not found.")
            if not program.alive():
                log.warning("%s: its program had ended; starting it again", name)
                try:
                    program = self._start(name, self.state_file.get("endpoint", name)["EndpointConfigName"])
                except (StartError, ApiError) as e:
                    raise self._model_error(name, 500, str(e)) from e
                self._running[name] = program
            if not program.accept_request():
                raise ApiError("ThrottlingException", f"Rate exceeded: {program.max_concurrency} requests are open")
            return program

    def _model_error(self, name: str, status: int, message: str) -> ApiError:
        text = f'Received {"client" if status < 500 else "server"} error ({status}) from primary with message "{message[:1000]}".'
        more = {"OriginalStatusCode": status, "OriginalMessage": message[:1000], "LogStreamArn": arn("log", name)}
        return ApiError("ModelError", text, 424, **more)


QUOTA = "Maximum total concurrency of serverless endpoints"
SUMMARY_FIELDS = ("CreationTime", "LastModifiedTime", "EndpointStatus")
