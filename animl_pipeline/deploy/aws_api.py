"""The boto3 calls of a release: S3 upload, SageMaker model, endpoint config and endpoint, SSM parameter. All are idempotent."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.deploy.resource_names import ReleaseTarget
from animl_pipeline.integrations.aws_calls import explain_aws_errors, none_if_missing, retrying_config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_sagemaker.type_defs import DescribeEndpointConfigOutputTypeDef, DescribeModelOutputTypeDef
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient
    from mypy_boto3_ssm import SSMClient

log = logging.getLogger(__name__)

IN_TRANSITION = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})


class EndpointState(Record):
    """SageMaker's description of an endpoint. During an update ``endpoint_config`` is the old one and ``pending_config`` the new one."""

    status: str
    endpoint_config: str
    arn: str = ""
    pending_config: str = ""
    failure_reason: str = ""

    def serves(self, config: str) -> bool:
        """Whether the endpoint answers with ``config``."""
        return self.status == "InService" and self.endpoint_config == config


class AwsApi:
    """boto3 clients, created at first use. Region and credentials come from boto3's own variables.

    Every method raises ReleaseError if AWS refuses a call, and AwsUnreachableError if another try may succeed.
    """

    @cached_property
    def sagemaker(self) -> SageMakerClient:
        import boto3

        return boto3.client("sagemaker", config=retrying_config())

    @cached_property
    def runtime(self) -> SageMakerRuntimeClient:
        import boto3

        return boto3.client("sagemaker-runtime", config=retrying_config())

    @cached_property
    def s3(self) -> S3Client:
        import boto3

        return boto3.client("s3", config=retrying_config())

    @cached_property
    def ssm(self) -> SSMClient:
        import boto3

        return boto3.client("ssm", config=retrying_config())

    # -- package, model and endpoint config --------------------------------------------------------------------------

    def upload_package(self, package: Path, target: ReleaseTarget, sha256: str) -> None:
        """Upload the package, unless the bucket already has it. The content decides, because metadata stay when an object is forged."""
        with explain_aws_errors(f"s3://{target.bucket}"):
            if none_if_missing(lambda: self.s3.head_bucket(Bucket=target.bucket)) is None:
                raise ReleaseError(missing_bucket(target.bucket), code="no_bucket")
            known = none_if_missing(lambda: self.s3.get_object(Bucket=target.bucket, Key=target.key))
            if known is not None and _sha256_of_stream(known["Body"].iter_chunks(1 << 20)) == sha256:
                log.info("%s is already in the bucket", target.model_url)
                return
            if known is not None:
                log.warning("%s is not the package that was released; it is replaced", target.model_url)
            self.s3.upload_file(str(package), target.bucket, target.key, ExtraArgs={"Metadata": {"sha256": sha256}})
            log.info("uploaded %s", target.model_url)

    def ensure_model(self, target: ReleaseTarget) -> None:
        """Create the SageMaker model, unless it exists.

        Raises:
            ReleaseError: it exists with another package.
        """
        known = self.model(target.sagemaker_model)
        if known is None:
            with explain_aws_errors(f"the SageMaker model {target.sagemaker_model}"):
                self.sagemaker.create_model(
                    ModelName=target.sagemaker_model,
                    ExecutionRoleArn=target.role_arn,
                    PrimaryContainer={"Image": target.image, "ModelDataUrl": target.model_url},
                    Tags=[{"Key": k, "Value": v} for k, v in target.tags.items()],
                )
            return
        url = known.get("PrimaryContainer", {}).get("ModelDataUrl")
        if url != target.model_url:
            raise ReleaseError(
                f"the SageMaker model {target.sagemaker_model} reads {url}, expected {target.model_url}; delete that model", code="name_taken"
            )

    def ensure_config(self, target: ReleaseTarget) -> None:
        """Create the endpoint config, unless it exists.

        Raises:
            ReleaseError: it exists with another model.
        """
        known = self.config(target.endpoint_config)
        if known is None:
            with explain_aws_errors(f"the endpoint config {target.endpoint_config}"):
                self.sagemaker.create_endpoint_config(
                    EndpointConfigName=target.endpoint_config,
                    ProductionVariants=[target.variant()],
                    Tags=[{"Key": k, "Value": v} for k, v in target.tags.items()],
                )
        elif known["ProductionVariants"][0].get("ModelName") != target.sagemaker_model:
            raise ReleaseError(
                f"the endpoint config {target.endpoint_config} names another model than {target.sagemaker_model}; delete that config",
                code="name_taken",
            )

    def model(self, name: str) -> DescribeModelOutputTypeDef | None:
        """A SageMaker model, None if it does not exist."""
        with explain_aws_errors(f"the SageMaker model {name}"):
            return none_if_missing(lambda: self.sagemaker.describe_model(ModelName=name))

    def config(self, name: str) -> DescribeEndpointConfigOutputTypeDef | None:
        """An endpoint config, None if it does not exist."""
        with explain_aws_errors(f"the endpoint config {name}"):
            return none_if_missing(lambda: self.sagemaker.describe_endpoint_config(EndpointConfigName=name))

    def model_of_config(self, config: str) -> str | None:
        """The name of an endpoint config's SageMaker model, None if the config does not exist."""
        known = self.config(config)
        return known["ProductionVariants"][0].get("ModelName") if known else None

    def tags(self, arn: str) -> dict[str, str]:
        """A resource's tags."""
        with explain_aws_errors(arn):
            pages = self.sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn)
            return {t["Key"]: t["Value"] for page in pages for t in page["Tags"]}

    # -- endpoint ----------------------------------------------------------------------------------------------------

    def endpoint_state(self, name: str) -> EndpointState | None:
        """An endpoint's present state, None if it does not exist."""
        with explain_aws_errors(f"the endpoint {name}"):
            known = none_if_missing(lambda: self.sagemaker.describe_endpoint(EndpointName=name))
        if known is None:
            return None
        return EndpointState(
            status=known["EndpointStatus"],
            endpoint_config=known.get("EndpointConfigName", ""),
            arn=known.get("EndpointArn", ""),
            pending_config=known.get("PendingDeploymentSummary", {}).get("EndpointConfigName", ""),
            failure_reason=" ".join(known.get("FailureReason", "").split()),
        )

    def start_update(self, name: str, config: str) -> None:
        """Start to update the endpoint to ``config``, or to create it. Nothing happens if it already serves ``config``."""
        state = self.endpoint_state(name)
        if state is not None and state.serves(config):
            return
        with explain_aws_errors(f"the endpoint {name}"):
            if state is not None:
                self.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config)
            else:
                self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
        log.info("%s: %s with config %s", name, "updating" if state else "creating", config)

    def copy_tags(self, name: str, config: str) -> None:
        """Give the endpoint the tags of its config. A failure is only logged, because the endpoint works without them."""
        try:
            state, known = self.endpoint_state(name), self.config(config)
            tags = self.tags(known["EndpointConfigArn"]) if known else {}
            if state is not None and tags:
                with explain_aws_errors(f"the tags of the endpoint {name}"):
                    self.sagemaker.add_tags(ResourceArn=state.arn, Tags=[{"Key": k, "Value": v} for k, v in tags.items()])
        except ReleaseError as e:
            log.warning("%s; the endpoint works without these tags", e)

    def delete_endpoint(self, name: str, timeout_s: float) -> None:
        """Delete an endpoint and wait until it is gone."""
        with explain_aws_errors(f"the endpoint {name}"):
            self.sagemaker.delete_endpoint(EndpointName=name)
        self.wait_until_stable(name, timeout_s)

    def wait_until_stable(self, name: str, timeout_s: float) -> EndpointState | None:
        """Wait until no update is in progress; the endpoint's state then, None if it does not exist.

        Raises:
            ReleaseError: the update still runs after ``timeout_s`` seconds.
        """
        deadline, pause, logged = time.monotonic() + timeout_s, 0.1, ""
        while True:
            state = self.endpoint_state(name)
            if state is None or state.status not in IN_TRANSITION:
                return state
            if state.status != logged:
                logged = state.status
                log.info("%s: %s", name, logged)
            if time.monotonic() > deadline:
                raise ReleaseError(
                    f"the endpoint {name} is still {state.status} after {timeout_s:.0f} s; look at its CloudWatch log, or raise release.timeout_s; "
                    "the next release or rollback finishes or undoes this update",
                    code="update_timed_out",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 5)

    # -- SSM ---------------------------------------------------------------------------------------------------------

    def parameter(self, name: str) -> str | None:
        """An SSM parameter's value, None if it does not exist."""
        with explain_aws_errors(f"the SSM parameter {name}"):
            known = none_if_missing(lambda: self.ssm.get_parameter(Name=name))
        return known["Parameter"].get("Value", "") if known else None

    def set_parameter(self, name: str, value: str) -> None:
        """Write an SSM parameter, creating it if necessary. No parameter is ever deleted, because Animl's API needs all of them."""
        before = self.parameter(name)
        if before == value:
            return
        with explain_aws_errors(f"the SSM parameter {name}"):
            self.ssm.put_parameter(Name=name, Value=value, Type="String", Overwrite=before is not None)
        log.info("%s: %s (before: %s)", name, value, before or "none")


def _sha256_of_stream(chunks: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def missing_bucket(bucket: str) -> str:
    """The message for a bucket that does not exist."""
    return f"expected the bucket s3://{bucket}, found none; create it, or set ANIML_MODELS_BUCKET to another"
