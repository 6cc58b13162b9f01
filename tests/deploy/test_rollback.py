"""What a rollback needs is looked for first: where it is not there, no endpoint is touched."""

from __future__ import annotations

import json
import logging
import time
import uuid
from pathlib import Path

import boto3
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.records import Artifact
from animl_pipeline.deploy import deploy_endpoint, endpoint_status, endpoints_status, rollback_endpoint
from animl_pipeline.storage.gc import Rules, clear_store
from animl_pipeline.storage.step_cache import Store
from tests.support.packaged_model import colour_plan, package_of
from tests.support.sagemaker_faults import spoiled, states

DAY_S = 86_400


def last_change(plan: Plan) -> object:
    """When SageMaker was last told to change an endpoint."""
    return boto3.client("sagemaker").describe_endpoint(EndpointName=plan.endpoint_name())["LastModifiedTime"]


def packages(store: Store, folder: Path, count: int) -> list[Artifact]:
    return [package_of(store, folder, f"v{n}", temperature=float(n)) for n in range(1, count + 1)]


def test_a_version_whose_package_was_cleared_is_refused_before_the_endpoint_is_touched(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    releases = [deploy_endpoint(package, plan, store, settings) for package in packages(store, tmp_path, 3)]
    clear_store(store, Rules(keep=1), look_only=False, now=time.time() + 100 * DAY_S)
    before = last_change(plan)
    for named in ("v1", releases[0].endpoint_config):
        with pytest.raises(ReleaseError, match=r"expected the package of v1, .*found it gone .*store gc.*nothing was changed.*--to takes v2 "):
            rollback_endpoint(plan, store, settings, to=named)
    assert last_change(plan) == before
    assert states(plan, store) == [("release", "done")] * 3
    assert endpoint_status(plan, store, settings).version == "v3"
    assert rollback_endpoint(plan, store, settings).version == "v2"
    with pytest.raises(ReleaseError, match="expected the package of v1, "):
        rollback_endpoint(plan, store, settings)  # without `to` it is no other


def test_a_reference_image_that_changed_in_the_store_stops_a_rollback_and_a_release_before_they_begin(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    first, second = packages(store, tmp_path, 2)
    deploy_endpoint(first, plan, store, settings)
    deploy_endpoint(second, plan, store, settings)
    before = last_change(plan)
    name = json.loads(store.path(first, "reference.json").read_bytes())[-1]["image"]
    store.path(first, f"reference/{name}").write_bytes(b"another picture")
    with pytest.raises(ReleaseError, match=r"expected the package of v1, .* found it gone or damaged"):
        rollback_endpoint(plan, store, settings)
    with pytest.raises(PipelineError, match="is not what its manifest says"):
        deploy_endpoint(first, plan, store, settings)
    assert (last_change(plan), states(plan, store)) == (before, [("release", "done")] * 2)


@pytest.mark.parametrize("to", ["", "../v1", "v9", "no-such-config", "x" * 300, "v1 "])
def test_a_version_that_never_was_is_one_line_with_those_that_were(plan: Plan, store: Store, settings: Settings, tmp_path: Path, to: str) -> None:
    for package in packages(store, tmp_path, 2):
        deploy_endpoint(package, plan, store, settings)
    with pytest.raises(ReleaseError, match=r"^expected a version or an endpoint config that was released before, found '") as caught:
        rollback_endpoint(plan, store, settings, to=to)
    assert str(caught.value).endswith(f"found {to!r}; nothing was changed; --to takes v1 (animl-pipeline release history PLAN)")
    assert states(plan, store) == [("release", "done")] * 2


def test_a_version_whose_release_was_undone_is_not_gone_back_to(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    with pytest.raises(ReleaseError, match="unlike offline"):
        deploy_endpoint(spoiled(store, package_of(store, tmp_path, "2", temperature=3.0)), plan, store, settings)
    with pytest.raises(ReleaseError, match=r"expected a version that has held, found 2, whose release was undone \(.*release it anew"):
        rollback_endpoint(plan, store, settings, to="2")
    assert states(plan, store)[1:] == [("release", "rolled_back")]


def test_what_was_served_before_the_first_release_comes_back_unchecked_and_that_is_said(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = packages(store, tmp_path, 2)
    elsewhere = colour_plan(endpoint=f"else-{uuid.uuid4().hex[:8]}")
    by_hand = deploy_endpoint(first, elsewhere, store, settings).endpoint_config
    boto3.client("sagemaker").create_endpoint(EndpointName=plan.endpoint_name(), EndpointConfigName=by_hand)
    boto3.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName=plan.endpoint_name(), WaiterConfig={"Delay": 1})
    assert deploy_endpoint(second, plan, store, settings).previous_config == by_hand
    with caplog.at_level(logging.WARNING):
        back = rollback_endpoint(plan, store, settings)
    assert (back.endpoint_config, back.version, back.checked) == (by_hand, "unknown", 0)
    assert f"{by_hand} was not released from here: what the endpoint then answers is not checked" in caplog.text


def test_neither_endpoint_goes_back_where_one_of_them_cannot(store: Store, settings: Settings, tmp_path: Path) -> None:
    both = colour_plan(endpoint=f"r{uuid.uuid4().hex[:6]}-{{purpose}}", batch={"max_concurrency": 80})
    made = [deploy_endpoint(package, both, store, settings) for package in packages(store, tmp_path, 2)]
    assert made[0].batch is not None
    boto3.client("sagemaker").delete_endpoint_config(EndpointConfigName=made[0].batch.endpoint_config)
    with pytest.raises(ReleaseError, match=rf"expected the endpoint config {made[0].batch.endpoint_config} .version v1. in SageMaker, found none"):
        rollback_endpoint(both, store, settings)
    assert [s.version for s in endpoints_status(both, store, settings)] == ["v2", "v2"]
