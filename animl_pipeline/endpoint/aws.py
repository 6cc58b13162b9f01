"""The boto3 calls that a release makes, each idempotent, each refusal one line that says which permission or setting."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animl_pipeline.endpoint.names import Target
from animl_pipeline.errors import ReleaseError
from animl_pipeline.records import Record

if TYPE_CHECKING:
    from botocore.config import Config
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

log = logging.getLogger(__name__)

VARIANT = "AllTraffic"
BUSY = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})


class EndpointState(Record):
    """What SageMaker says of an endpoint now; during an update the config is still the old one."""

    status: str
    endpoint_config: str
    failure_reason: str = ""

    def serves(self, config: str) -> bool:
        """Whether ``config`` is what answers."""
        return self.status == "InService" and self.endpoint_config == config


class Aws:
    """boto3's clients, made at first use; region and credentials are boto3's own variables."""

    @cached_property
    def sagemaker(self) -> SageMakerClient:
        import boto3

        return boto3.client("sagemaker", config=_patient())

    @cached_property
    def runtime(self) -> SageMakerRuntimeClient:
        import boto3

        return boto3.client("sagemaker-runtime", config=_patient())

    @cached_property
    def s3(self) -> S3Client:
        import boto3

        return boto3.client("s3", config=_patient())

    # -- what a config needs -----------------------------------------------------------------------------------------

    def upload(self, package: Path, target: Target, sha256: str) -> None:
        """Put the package where the model looks for it, unless it is there.

        Raises:
            ReleaseError: the bucket is not there or may not be written.
        """
        with spoken(f"s3://{target.bucket}"):
            self._need_bucket(target.bucket)
            if self._stored_sha256(target) == sha256:
                log.info("%s is there already", target.model_url())
                return
            self.s3.upload_file(str(package), target.bucket, target.key, ExtraArgs={"Metadata": {"sha256": sha256}})
            log.info("uploaded %s", target.model_url())

    def ensure_model(self, target: Target) -> None:
        """The SageMaker model of that name, made unless it is there.

        Raises:
            ReleaseError: it is there and reads another package, or it cannot be made.
        """
        with spoken(f"the SageMaker model {target.sagemaker_model}"):
            known = _found(lambda: self.sagemaker.describe_model(ModelName=target.sagemaker_model))
            if known is None:
                self.sagemaker.create_model(
                    ModelName=target.sagemaker_model,
                    ExecutionRoleArn=target.role_arn,
                    PrimaryContainer={"Image": target.image, "ModelDataUrl": target.model_url()},
                    Tags=[{"Key": k, "Value": v} for k, v in target.tags.items()],
                )
                return
        url = known.get("PrimaryContainer", {}).get("ModelDataUrl")
        if url != target.model_url():
            raise ReleaseError(f"the SageMaker model {target.sagemaker_model} reads {url}, expected {target.model_url()}; delete that model")

    def ensure_config(self, target: Target) -> None:
        """The endpoint config of that name, made unless it is there.

        Raises:
            ReleaseError: it is there and names another model, or it cannot be made.
        """
        with spoken(f"the endpoint config {target.endpoint_config}"):
            if _found(lambda: self.sagemaker.describe_endpoint_config(EndpointConfigName=target.endpoint_config)) is None:
                self.sagemaker.create_endpoint_config(
                    EndpointConfigName=target.endpoint_config,
                    ProductionVariants=[
                        {
                            "VariantName": VARIANT,
                            "ModelName": target.sagemaker_model,
                            "ServerlessConfig": {"MemorySizeInMB": target.memory_mb, "MaxConcurrency": target.max_concurrency},
                        }
                    ],
                    Tags=[{"Key": k, "Value": v} for k, v in target.tags.items()],
                )
                return
        if self.model_of(target.endpoint_config) != target.sagemaker_model:
            raise ReleaseError(f"the endpoint config {target.endpoint_config} names another model than {target.sagemaker_model}; delete that config")

    def model_of(self, config: str) -> str | None:
        """The SageMaker model that an endpoint config names, None where there is no such config."""
        with spoken(f"the endpoint config {config}"):
            known = _found(lambda: self.sagemaker.describe_endpoint_config(EndpointConfigName=config))
        return known["ProductionVariants"][0].get("ModelName") if known else None

    # -- the endpoint ------------------------------------------------------------------------------------------------

    def endpoint(self, name: str) -> EndpointState | None:
        """How an endpoint is, None where there is none."""
        with spoken(f"the endpoint {name}"):
            known = _found(lambda: self.sagemaker.describe_endpoint(EndpointName=name))
        if known is None:
            return None
        return EndpointState(
            status=known["EndpointStatus"],
            endpoint_config=known.get("EndpointConfigName", ""),
            failure_reason=" ".join(known.get("FailureReason", "").split()),
        )

    def point(self, name: str, config: str, tags: dict[str, str]) -> None:
        """Order the endpoint to serve ``config``; it is created when it is not there."""
        exists = self.endpoint(name) is not None
        with spoken(f"the endpoint {name}"):
            if exists:
                self.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config)
            else:
                self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config, Tags=[{"Key": k, "Value": v} for k, v in tags.items()])
        log.info("%s: %s to %s", name, "updating" if exists else "creating, set", config)

    def remove(self, name: str, timeout_s: float) -> None:
        """Delete an endpoint and wait until it is gone."""
        with spoken(f"the endpoint {name}"):
            self.sagemaker.delete_endpoint(EndpointName=name)
        self.settled(name, timeout_s)

    def settled(self, name: str, timeout_s: float) -> EndpointState | None:
        """How the endpoint is once nothing is under way there; None when it is gone.

        Raises:
            ReleaseError: it is still under way after ``timeout_s`` seconds.
        """
        deadline, pause, seen = time.monotonic() + timeout_s, 0.1, ""
        while True:
            state = self.endpoint(name)
            if state is None or state.status not in BUSY:
                return state
            if state.status != seen:
                seen = state.status
                log.info("%s: %s", name, seen)
            if time.monotonic() > deadline:
                raise ReleaseError(
                    f"the endpoint {name} is still {seen} after {timeout_s:.0f} s; look at its log in CloudWatch, or raise release.timeout_s; "
                    "the next release or rollback finishes or undoes what is under way"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 5)

    def _need_bucket(self, bucket: str) -> None:
        if _found(lambda: self.s3.head_bucket(Bucket=bucket)) is None:
            raise ReleaseError(f"expected the bucket s3://{bucket}, found none; make it, or set ANIML_MODELS_BUCKET to another")

    def _stored_sha256(self, target: Target) -> str | None:
        known = _found(lambda: self.s3.head_object(Bucket=target.bucket, Key=target.key))
        return known["Metadata"].get("sha256") if known else None


@contextmanager
def spoken(what: str) -> Iterator[None]:
    """Turn what AWS answers into one clear line about ``what``."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        yield
    except ClientError as e:
        error = e.response.get("Error", {})
        denied = "AccessDenied" in error.get("Code", "") or error.get("Code") in {"403", "UnauthorizedOperation"}
        remedy = f"; your AWS user or role lacks the permission for {e.operation_name}" if denied else ""
        raise ReleaseError(
            f"{what}: {e.operation_name} was refused with {error.get('Code')}: {' '.join(error.get('Message', '').split())}{remedy}"
        ) from e
    except NoCredentialsError as e:
        raise ReleaseError(f"{what}: found no AWS credentials; set AWS_PROFILE or sign in") from e
    except NoRegionError as e:
        raise ReleaseError(f"{what}: found no AWS region; set AWS_DEFAULT_REGION, such as us-west-2") from e
    except (BotoCoreError, Boto3Error) as e:
        raise ReleaseError(f"{what}: AWS cannot be asked: {e}; check the network, the region and AWS's usual variables") from e


def _patient() -> Config:
    """A serverless endpoint may take a minute to answer; standard retries cover throttling and passing faults."""
    from botocore.config import Config

    return Config(read_timeout=70, retries={"mode": "standard", "max_attempts": 5})


def _found(call: Any) -> Any:
    """``call``'s answer, None where AWS says that there is no such thing."""
    from botocore.exceptions import ClientError

    try:
        return call()
    except ClientError as e:
        error = e.response.get("Error", {})
        code, message = error.get("Code", ""), error.get("Message", "")
        if code in {"404", "NoSuchKey", "NoSuchBucket", "NotFound"} or (code == "ValidationException" and "could not find" in message.lower()):
            return None
        raise
