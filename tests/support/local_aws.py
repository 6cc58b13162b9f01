"""AWS on this machine for tests: the environment variables that lead to it, with a bucket for models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from animl_pipeline.cli import console
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, local_sagemaker


@contextmanager
def local_aws_services(folder: Path, bucket: str = "") -> Iterator[dict[str, str]]:
    """The environment variables that lead to SageMaker and S3 on this machine; with the bucket for models, if it is named."""
    with local_sagemaker(folder) as addresses:
        variables = addresses.variables() | {"ANIML_ROLE_ARN": ROLE, "ANIML_ENDPOINT_IMAGE": IMAGE}
        if bucket:
            keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
            boto3.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL_S3"], region_name="us-east-1", **keys).create_bucket(Bucket=bucket)
            variables["ANIML_MODELS_BUCKET"] = bucket
        yield variables


@contextmanager
def release_environment(cloud: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test's own store and bucket in this process's environment, and a wide terminal. Its endpoints are removed at the end."""
    bucket = folder.name.replace("_", "-").lower()[-40:].strip("-")
    for name, value in (cloud | {"ANIML_STORE": str(folder / "store"), "ANIML_MODELS_BUCKET": bucket}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(console.out, "width", 200)  # independent of the terminal that the tests run in
    boto3.setup_default_session()
    boto3.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    yield
    aws = AwsApi()
    for endpoint in aws.sagemaker.list_endpoints()["Endpoints"]:
        aws.delete_endpoint(endpoint["EndpointName"], 60)
