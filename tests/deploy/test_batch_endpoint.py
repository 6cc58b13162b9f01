"""Plans with a second endpoint for batches, with instances, or with a new endpoint for each version behind an SSM parameter."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.deploy import delete_unused, deploy_package, endpoint_statuses, realtime_status, roll_back
from animl_pipeline.deploy.resource_names import ssm_parameter_name
from animl_pipeline.dev.sagemaker_local import Addresses
from animl_pipeline.storage.store import Store
from tests.support.packaged_model import colour_plan, make_package
from tests.support.sagemaker_faults import release_states, with_faults, with_wrong_predictions


def test_the_batch_endpoint_gets_the_same_model_and_is_rolled_back_with_the_realtime_endpoint(
    cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    both = colour_plan(endpoint=f"b{uuid.uuid4().hex[:6]}-{{purpose}}", batch_endpoint={"max_concurrency": 80})
    first = deploy_package(make_package(store, tmp_path), both, store, settings)
    assert first.batch is not None
    assert (first.batch.sagemaker_model, first.batch.checked) == (first.sagemaker_model, 3)
    second = deploy_package(make_package(store, tmp_path, "2", temperature=3.0), both, store, settings)
    back = roll_back(both, store, settings)
    assert back.batch is not None
    assert (back.version, back.batch.version, back.batch.endpoint_config) == ("1", "1", first.batch.endpoint_config)
    with with_faults(cloud, throttled=0), pytest.raises(ReleaseError) as caught:
        deploy_package(with_wrong_predictions(store, make_package(store, tmp_path, "3", temperature=2.0)), both, store, settings)
    assert caught.value.code == "answers_differ"
    assert [s.version for s in endpoint_statuses(both, store, settings)] == ["1", "1"]
    assert second.batch is not None


def test_a_rollback_within_a_version_takes_the_batch_endpoint_back_too(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    both = colour_plan(endpoint=f"b{uuid.uuid4().hex[:6]}-{{purpose}}", batch_endpoint={"max_concurrency": 80})
    first = deploy_package(make_package(store, tmp_path), both, store, settings)
    deploy_package(make_package(store, tmp_path, temperature=3.0), both, store, settings)  # the same version, another calibration
    back = roll_back(both, store, settings)
    assert first.batch is not None
    assert back.batch is not None
    assert (back.endpoint_config, back.batch.endpoint_config) == (first.endpoint_config, first.batch.endpoint_config)


def concurrency_in_use() -> int:
    """The serverless concurrency of all endpoints."""
    sagemaker = boto3.client("sagemaker")
    names = [e["EndpointName"] for page in sagemaker.get_paginator("list_endpoints").paginate() for e in page["Endpoints"]]
    configs = [
        sagemaker.describe_endpoint_config(EndpointConfigName=sagemaker.describe_endpoint(EndpointName=n)["EndpointConfigName"]) for n in names
    ]
    return sum(c["ProductionVariants"][0].get("ServerlessConfig", {"MaxConcurrency": 0})["MaxConcurrency"] for c in configs)


def test_if_the_batch_endpoint_fails_the_realtime_endpoint_is_rolled_back(
    cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    good = make_package(store, tmp_path)
    deploy_package(good, colour_plan(endpoint=f"other-{uuid.uuid4().hex[:6]}"), store, settings)
    name = f"b{uuid.uuid4().hex[:6]}-{{purpose}}"
    first = deploy_package(good, colour_plan(endpoint=name), store, settings)
    both = colour_plan(endpoint=name, batch_endpoint={"max_concurrency": 80})
    with with_faults(cloud, quota_concurrency=concurrency_in_use() + 79), pytest.raises(ReleaseError) as caught:
        deploy_package(make_package(store, tmp_path, "2"), both, store, settings)
    assert isinstance(caught.value.__cause__, ReleaseError)
    assert caught.value.__cause__.details["aws_code"] == "ResourceLimitExceeded"
    assert realtime_status(both, store, settings).endpoint_config == first.endpoint_config
    assert release_states(both, store) == [("release", "done"), ("release", "done"), ("rollback", "done")]
    assert [s.status for s in endpoint_statuses(both, store, settings)] == ["InService", "absent"]


def test_the_endpoint_config_has_the_instance_type_of_the_plan(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = colour_plan(endpoint=f"machine-{uuid.uuid4().hex[:6]}", instance_type="ml.c6i.large", instances=2)
    done = deploy_package(make_package(store, tmp_path), plan, store, settings)
    variant = boto3.client("sagemaker").describe_endpoint_config(EndpointConfigName=done.endpoint_config)["ProductionVariants"][0]
    assert (variant["InstanceType"], variant["InitialInstanceCount"], "ServerlessConfig" in variant) == ("ml.c6i.large", 2, False)


def versioned(**release: Any) -> Plan:
    """A plan that switches an SSM parameter."""
    name, parameter = f"{{model}}-{{version}}-{uuid.uuid4().hex[:6]}", f"/ml/{uuid.uuid4().hex[:6]}-{{purpose}}-{{stage}}"
    return colour_plan(endpoint=name, switch="ssm", register={"parameter": parameter}, **release)


def parameter_value(plan: Plan, settings: Settings) -> str:
    return str(boto3.client("ssm").get_parameter(Name=ssm_parameter_name(plan, "realtime", settings))["Parameter"]["Value"])


def test_with_switch_ssm_each_version_has_its_own_endpoint(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = versioned()
    first = deploy_package(make_package(store, tmp_path), plan, store, settings)
    assert parameter_value(plan, settings) == first.endpoint
    second = deploy_package(make_package(store, tmp_path, "2", temperature=3.0), plan, store, settings)
    assert parameter_value(plan, settings) == second.endpoint != first.endpoint
    bad = with_wrong_predictions(store, make_package(store, tmp_path, "3", temperature=2.0))
    with pytest.raises(ReleaseError) as caught:
        deploy_package(bad, plan, store, settings)
    assert parameter_value(plan, settings) == second.endpoint
    assert caught.value.code == "answers_differ"
    assert realtime_status(plan, store, settings).version == "2"
    back = roll_back(plan, store, settings)
    assert (back.version, parameter_value(plan, settings)) == ("1", first.endpoint)
    assert roll_back(plan, store, settings, to="2").endpoint == parameter_value(plan, settings) == second.endpoint
    assert deploy_package(make_package(store, tmp_path, "2", temperature=3.0), plan, store, settings).changed is False
    deleted = delete_unused(plan, store, settings, keep_versions=1)
    assert (deleted.endpoints, parameter_value(plan, settings)) == ((first.endpoint,), second.endpoint)


def test_cleanup_keeps_the_endpoint_that_another_stage_uses_and_one_that_is_somebody_elses(
    cloud: Addresses, store: Store, settings: Settings, tmp_path: Path
) -> None:
    plan, prod = versioned(), settings.model_copy(update={"stage": "prod"})
    package = make_package(store, tmp_path)
    first = deploy_package(package, plan, store, settings)
    deploy_package(package, plan, store, prod)
    second = deploy_package(make_package(store, tmp_path, "2", temperature=3.0), plan, store, settings)
    assert delete_unused(plan, store, settings, keep_versions=1).endpoints == ()
    assert parameter_value(plan, prod) == first.endpoint
    deploy_package(make_package(store, tmp_path, "3", temperature=2.0), plan, store, settings)
    arn = boto3.client("sagemaker").describe_endpoint(EndpointName=second.endpoint)["EndpointArn"]
    boto3.client("sagemaker").add_tags(ResourceArn=arn, Tags=[{"Key": "animl:model", "Value": "other"}])
    assert delete_unused(plan, store, settings, keep_versions=1).endpoints == ()
