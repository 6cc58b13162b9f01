"""A local SageMaker, with a plan and settings for it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, Addresses, local_sagemaker
from tests.support.packaged_model import colour_plan

BUCKET = "animl-model-zoo"
AWS_SETTINGS: dict[str, Any] = {"role_arn": ROLE, "endpoint_image": IMAGE, "stage": "dev"}


@pytest.fixture(scope="module", autouse=True)
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A local SageMaker and S3, whose addresses boto3 reads from its usual variables."""
    with local_sagemaker(tmp_path_factory.mktemp("cloud") / "state") as addresses, pytest.MonkeyPatch.context() as patch:
        for name, value in addresses.variables().items():
            patch.setenv(name, value)
        boto3.setup_default_session()  # the session of an earlier test keeps its credentials
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        yield addresses


@pytest.fixture(autouse=True)
def _delete_endpoints() -> Iterator[None]:
    """Delete all endpoints after each test, because each is a process."""
    yield
    sagemaker = boto3.client("sagemaker")
    for page in sagemaker.get_paginator("list_endpoints").paginate():
        for endpoint in page["Endpoints"]:
            if endpoint["EndpointStatus"] in {"InService", "Failed"}:
                sagemaker.delete_endpoint(EndpointName=endpoint["EndpointName"])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=str(tmp_path / "store"), data=tmp_path, cache=tmp_path / "cache", **AWS_SETTINGS)


@pytest.fixture
def plan() -> Plan:
    """A plan with an endpoint name that no other test uses."""
    return colour_plan(endpoint=f"colours-{uuid.uuid4().hex[:8]}")
