"""An endpoint for batches beside the first, machines that are always on, and an endpoint a version behind SSM's value."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.deploy import clear_away, deploy_endpoint, endpoint_status, endpoints_status, rollback_endpoint
from animl_pipeline.deploy.endpoint_names import parameter_of
from animl_pipeline.dev.sagemaker_local import Addresses
from animl_pipeline.storage.step_cache import Store
from tests.support.packaged_model import colour_plan, package_of
from tests.support.sagemaker_faults import faulty, spoiled, states


def test_the_endpoint_for_batches_has_the_same_model_and_goes_back_with_the_first(
    cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    both = colour_plan(endpoint=f"b{uuid.uuid4().hex[:6]}-{{purpose}}", batch={"max_concurrency": 80})
    first = deploy_endpoint(package_of(store, tmp_path), both, store, settings)
    assert first.batch is not None
    assert (first.batch.sagemaker_model, first.batch.checked) == (first.sagemaker_model, 3)
    second = deploy_endpoint(package_of(store, tmp_path, "2", temperature=3.0), both, store, settings)
    back = rollback_endpoint(both, store, settings)
    assert back.batch is not None
    assert (back.version, back.batch.version, back.batch.endpoint_config) == ("1", "1", first.batch.endpoint_config)
    with faulty(cloud, throttled=0), pytest.raises(ReleaseError, match="golden crops unlike offline"):
        deploy_endpoint(spoiled(store, package_of(store, tmp_path, "3", temperature=2.0)), both, store, settings)
    assert [s.version for s in endpoints_status(both, store, settings)] == ["1", "1"]
    assert second.batch is not None


def concurrency_in_use() -> int:
    sagemaker = boto3.client("sagemaker")
    names = [e["EndpointName"] for page in sagemaker.get_paginator("list_endpoints").paginate() for e in page["Endpoints"]]
    configs = [
        sagemaker.describe_endpoint_config(EndpointConfigName=sagemaker.describe_endpoint(EndpointName=n)["EndpointConfigName"]) for n in names
    ]
    return sum(c["ProductionVariants"][0].get("ServerlessConfig", {"MaxConcurrency": 0})["MaxConcurrency"] for c in configs)


def test_when_the_endpoint_for_batches_does_not_take_it_the_first_goes_back_too(
    cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    good = package_of(store, tmp_path)
    deploy_endpoint(good, colour_plan(endpoint=f"other-{uuid.uuid4().hex[:6]}"), store, settings)
    name = f"b{uuid.uuid4().hex[:6]}-{{purpose}}"
    first = deploy_endpoint(good, colour_plan(endpoint=name), store, settings)
    both = colour_plan(endpoint=name, batch={"max_concurrency": 80})
    with faulty(cloud, quota_concurrency=concurrency_in_use() + 79), pytest.raises(ReleaseError, match=r"ResourceLimitExceeded.*account-level"):
        deploy_endpoint(package_of(store, tmp_path, "2"), both, store, settings)
    assert endpoint_status(both, store, settings).endpoint_config == first.endpoint_config
    assert states(both, store) == [("release", "done"), ("release", "done"), ("rollback", "done")]
    assert [s.status for s in endpoints_status(both, store, settings)] == ["InService", "absent"]


def test_an_instance_type_of_the_plan_is_what_the_config_asks_for(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = colour_plan(endpoint=f"machine-{uuid.uuid4().hex[:6]}", instance_type="ml.c6i.large", instances=2)
    done = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    variant = boto3.client("sagemaker").describe_endpoint_config(EndpointConfigName=done.endpoint_config)["ProductionVariants"][0]
    assert (variant["InstanceType"], variant["InitialInstanceCount"], "ServerlessConfig" in variant) == ("ml.c6i.large", 2, False)


def versioned(**release: Any) -> Plan:
    """A plan that switches by SSM's value."""
    name, parameter = f"{{model}}-{{version}}-{uuid.uuid4().hex[:6]}", f"/ml/{uuid.uuid4().hex[:6]}-{{purpose}}-{{stage}}"
    return colour_plan(endpoint=name, switch="ssm", register={"parameter": parameter}, **release)


def held(plan: Plan, settings: Settings) -> str:
    return str(boto3.client("ssm").get_parameter(Name=parameter_of(plan, "realtime", settings))["Parameter"]["Value"])


def test_where_ssm_is_switched_each_version_has_an_endpoint_of_its_own(store: Store, settings: Settings, tmp_path: Path) -> None:
    plan = versioned()
    first = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    assert held(plan, settings) == first.endpoint
    second = deploy_endpoint(package_of(store, tmp_path, "2", temperature=3.0), plan, store, settings)
    assert held(plan, settings) == second.endpoint != first.endpoint
    bad = spoiled(store, package_of(store, tmp_path, "3", temperature=2.0))
    with pytest.raises(ReleaseError, match=f"unlike offline.*holds {second.endpoint} as before"):
        deploy_endpoint(bad, plan, store, settings)
    assert held(plan, settings) == second.endpoint
    assert endpoint_status(plan, store, settings).version == "2"
    back = rollback_endpoint(plan, store, settings)
    assert (back.version, held(plan, settings)) == ("1", first.endpoint)
    assert rollback_endpoint(plan, store, settings, to="2").endpoint == held(plan, settings) == second.endpoint
    assert deploy_endpoint(package_of(store, tmp_path, "2", temperature=3.0), plan, store, settings).changed is False
    cleared = clear_away(plan, store, settings, keep=1)
    assert (cleared.endpoints, held(plan, settings)) == ((first.endpoint,), second.endpoint)
