"""boto3's clients for one local SageMaker, and packages to put behind it."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from animl_pipeline.dev.sagemaker_local import Addresses
from tests.conftest import colour_model, jpeg
from tests.support.endpoint_process import wait_until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sagemaker import SageMakerClient
    from mypy_boto3_sagemaker_runtime import SageMakerRuntimeClient

ROLE = "arn:aws:iam::123456789012:role/sagemaker-local"
BUCKET = "zoo"
QUESTION = json.dumps({"image": base64.b64encode(jpeg(colour=(200, 40, 40))).decode(), "bbox": [0, 0, 1, 1]})


class Cloud:
    """boto3's clients for one local SageMaker, and the usual calls in short."""

    def __init__(self, addresses: Addresses) -> None:
        known = {
            "region_name": "us-east-1",
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "config": Config(retries={"total_max_attempts": 1}),
        }
        make: Any = boto3.client
        self.sm: SageMakerClient = make("sagemaker", endpoint_url=addresses.sagemaker, **known)
        self.rt: SageMakerRuntimeClient = make("sagemaker-runtime", endpoint_url=addresses.sagemaker, **known)
        self.s3: S3Client = make("s3", endpoint_url=addresses.s3, **known)
        self.s3.create_bucket(Bucket=BUCKET)
        self.set_faults = addresses.set_faults

    def put(self, archive: bytes) -> str:
        """Upload; the address comes back."""
        key = f"{uuid.uuid4().hex}/model.tar.gz"
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=archive)
        return f"s3://{BUCKET}/{key}"

    def config(self, archive: bytes, concurrency: int = 20) -> str:
        """A model and an endpoint config over an archive; the config's name comes back."""
        name = f"m-{uuid.uuid4().hex[:8]}"
        self.sm.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "animl", "ModelDataUrl": self.put(archive)})
        serverless: Any = {"MemorySizeInMB": 2048, "MaxConcurrency": concurrency}
        self.sm.create_endpoint_config(
            EndpointConfigName=f"c-{name}", ProductionVariants=[{"VariantName": "AllTraffic", "ModelName": name, "ServerlessConfig": serverless}]
        )
        return f"c-{name}"

    def settled(self, name: str) -> Any:
        """The endpoint's description once nothing is under way."""

        def described() -> Any:
            endpoint = self.sm.describe_endpoint(EndpointName=name)
            return None if endpoint["EndpointStatus"] in {"Creating", "Updating", "Deleting"} else endpoint

        return wait_until(described, f"{name} is settled")

    def endpoint(self, config: str) -> str:
        """A new endpoint in service on a config."""
        name = f"e-{uuid.uuid4().hex[:8]}"
        self.sm.create_endpoint(EndpointName=name, EndpointConfigName=config)
        assert self.settled(name)["EndpointStatus"] == "InService"
        return name

    def ask(self, name: str) -> dict[str, float]:
        """The endpoint's answer for one picture."""
        answer: dict[str, float] = json.loads(self.rt.invoke_endpoint(EndpointName=name, Body=QUESTION)["Body"].read())
        return answer


def archive_of(folder: Path, *classes: str) -> bytes:
    """A model.tar.gz of the colour model."""
    model = colour_model(folder / "-".join(classes), classes)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("model.onnx", "card.json"):
            archive.add(model / name, name)
    return buffer.getvalue()


def empty_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz"):
        pass
    return buffer.getvalue()
