"""The boto3 calls that a release makes, each idempotent, each refusal one line that says which permission or setting."""

from __future__ import annotations

import logging
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Record
from animl_pipeline.deploy.aws_errors import found, patient, spoken
from animl_pipeline.deploy.endpoint_names import Target

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_sagemaker.type_defs import DescribeEndpointConfigOutputTypeDef
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient
    from mypy_boto3_ssm import SSMClient

log = logging.getLogger(__name__)

BUSY = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})


class EndpointState(Record):
    """What SageMaker says of an endpoint now; during an update the config is still the old one, and ``coming`` the new one."""

    status: str
    endpoint_config: str
    arn: str = ""
    coming: str = ""
    failure_reason: str = ""

    def serves(self, config: str) -> bool:
        """Whether ``config`` is what answers."""
        return self.status == "InService" and self.endpoint_config == config


class Aws:
    """boto3's clients, made at first use; region and credentials are boto3's own variables."""

    @cached_property
    def sagemaker(self) -> SageMakerClient:
        import boto3

        return boto3.client("sagemaker", config=patient())

    @cached_property
    def runtime(self) -> SageMakerRuntimeClient:
        import boto3

        return boto3.client("sagemaker-runtime", config=patient())

    @cached_property
    def s3(self) -> S3Client:
        import boto3

        return boto3.client("s3", config=patient())

    @cached_property
    def ssm(self) -> SSMClient:
        import boto3

        return boto3.client("ssm", config=patient())

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
            known = found(lambda: self.sagemaker.describe_model(ModelName=target.sagemaker_model))
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
            if found(lambda: self.sagemaker.describe_endpoint_config(EndpointConfigName=target.endpoint_config)) is None:
                self.sagemaker.create_endpoint_config(
                    EndpointConfigName=target.endpoint_config,
                    ProductionVariants=[target.variant()],
                    Tags=[{"Key": k, "Value": v} for k, v in target.tags.items()],
                )
                return
        if self.model_of(target.endpoint_config) != target.sagemaker_model:
            raise ReleaseError(f"the endpoint config {target.endpoint_config} names another model than {target.sagemaker_model}; delete that config")

    def model_of(self, config: str) -> str | None:
        """The SageMaker model that an endpoint config names, None where there is no such config."""
        known = self.config(config)
        return known["ProductionVariants"][0].get("ModelName") if known else None

    def config(self, name: str) -> DescribeEndpointConfigOutputTypeDef | None:
        """An endpoint config, None where there is none of that name."""
        with spoken(f"the endpoint config {name}"):
            return found(lambda: self.sagemaker.describe_endpoint_config(EndpointConfigName=name))

    def tags(self, arn: str) -> dict[str, str]:
        """A resource's tags."""
        with spoken(arn):
            pages = self.sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn)
            return {t["Key"]: t["Value"] for page in pages for t in page["Tags"]}

    # -- the endpoint ------------------------------------------------------------------------------------------------

    def endpoint(self, name: str) -> EndpointState | None:
        """How an endpoint is, None where there is none."""
        with spoken(f"the endpoint {name}"):
            known = found(lambda: self.sagemaker.describe_endpoint(EndpointName=name))
        if known is None:
            return None
        return EndpointState(
            status=known["EndpointStatus"],
            endpoint_config=known.get("EndpointConfigName", ""),
            arn=known.get("EndpointArn", ""),
            coming=known.get("PendingDeploymentSummary", {}).get("EndpointConfigName", ""),
            failure_reason=" ".join(known.get("FailureReason", "").split()),
        )

    def point(self, name: str, config: str) -> None:
        """Order the endpoint to serve ``config``; it is created when it is not there, and left alone when it does already."""
        state = self.endpoint(name)
        if state is not None and state.serves(config):
            return
        with spoken(f"the endpoint {name}"):
            if state is not None:
                self.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=config)
            else:
                self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
        log.info("%s: %s to %s", name, "updating" if state else "creating, set", config)

    def label(self, name: str, config: str) -> None:
        """Give the endpoint the tags of the config that it serves. What fails here is said and stops nobody."""
        try:
            state, known = self.endpoint(name), self.config(config)
            tags = self.tags(known["EndpointConfigArn"]) if known else {}
            if state is not None and tags:
                with spoken(f"the tags of the endpoint {name}"):
                    self.sagemaker.add_tags(ResourceArn=state.arn, Tags=[{"Key": k, "Value": v} for k, v in tags.items()])
        except ReleaseError as e:
            log.warning("%s; it serves all the same", e)

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

    # -- SSM -------------------------------------------------------------------------------------------------------------

    def parameter(self, name: str) -> str | None:
        """What an SSM parameter holds, None where there is none."""
        with spoken(f"the SSM parameter {name}"):
            known = found(lambda: self.ssm.get_parameter(Name=name))
        return known["Parameter"].get("Value", "") if known else None

    def set_parameter(self, name: str, value: str) -> None:
        """Let an SSM parameter hold ``value``; it is made when it is not there. None is ever deleted: Animl's API needs all of them."""
        before = self.parameter(name)
        if before == value:
            return
        with spoken(f"the SSM parameter {name}"):
            self.ssm.put_parameter(Name=name, Value=value, Type="String", Overwrite=before is not None)
        log.info("%s: %s (before: %s)", name, value, before or "none")

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _need_bucket(self, bucket: str) -> None:
        if found(lambda: self.s3.head_bucket(Bucket=bucket)) is None:
            raise ReleaseError(f"expected the bucket s3://{bucket}, found none; make it, or set ANIML_MODELS_BUCKET to another")

    def _stored_sha256(self, target: Target) -> str | None:
        known = found(lambda: self.s3.head_object(Bucket=target.bucket, Key=target.key))
        return known["Metadata"].get("sha256") if known else None
