"""Rollbacks that lack something change no endpoint."""

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
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import DamagedError, ReleaseError
from animl_pipeline.deploy import deploy_package, endpoint_statuses, realtime_status, roll_back
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.rollback import _rollback_record
from animl_pipeline.deploy.update_or_undo import EndpointUpdater
from animl_pipeline.storage.gc import GcRules, collect_garbage
from animl_pipeline.storage.store import Store
from tests.support.packaged_model import colour_plan, make_package
from tests.support.sagemaker_faults import release_states, with_wrong_predictions

DAY_S = 86_400


def last_change(plan: Plan) -> object:
    """When the endpoint was last modified."""
    return boto3.client("sagemaker").describe_endpoint(EndpointName=plan.endpoint_name())["LastModifiedTime"]


def packages(store: Store, folder: Path, count: int) -> list[Artifact]:
    """Packages of the versions v1 to v<count>."""
    return [make_package(store, folder, f"v{n}", temperature=float(n)) for n in range(1, count + 1)]


def test_a_rollback_to_a_version_whose_package_was_deleted_is_refused(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    releases = [deploy_package(package, plan, store, settings) for package in packages(store, tmp_path, 3)]
    collect_garbage(store, GcRules(keep=1), dry_run=False, now=time.time() + 100 * DAY_S)
    before = last_change(plan)
    for named in ("v1", releases[0].endpoint_config):
        with pytest.raises(ReleaseError, match="--to takes v2 ") as caught:
            roll_back(plan, store, settings, to=named)
        assert caught.value.code == "package_missing"
    assert last_change(plan) == before
    assert release_states(plan, store) == [("release", "done")] * 3
    assert realtime_status(plan, store, settings).version == "v3"
    assert roll_back(plan, store, settings).version == "v2"
    with pytest.raises(ReleaseError) as without_to:  # it must not choose another version instead
        roll_back(plan, store, settings)
    assert without_to.value.code == "package_missing"


def test_a_killed_rollback_is_completed_by_the_next_one_which_goes_no_further(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    for package in packages(store, tmp_path, 3):
        deploy_package(package, plan, store, settings)
    updater = EndpointUpdater(AwsApi(), plan, store)
    begun = updater.begin(_rollback_record(updater, plan.release.endpoints(plan.model)[0], None, settings))
    updater.aws.start_update(begun.endpoint, begun.endpoint_config)  # the process is killed here
    assert roll_back(plan, store, settings).version == "v2"
    assert release_states(plan, store) == [("release", "done")] * 3 + [("rollback", "done")]
    assert realtime_status(plan, store, settings).version == "v2"


def test_a_damaged_reference_image_stops_a_rollback_and_a_release(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    first, second = packages(store, tmp_path, 2)
    deploy_package(first, plan, store, settings)
    deploy_package(second, plan, store, settings)
    before = last_change(plan)
    name = json.loads(store.path(first, "reference_predictions.json").read_bytes())[-1]["image"]
    store.path(first, f"reference_predictions/{name}").write_bytes(b"another image")
    with pytest.raises(ReleaseError) as caught:
        roll_back(plan, store, settings)
    assert caught.value.code == "package_missing"
    with pytest.raises(DamagedError):
        deploy_package(first, plan, store, settings)
    assert (last_change(plan), release_states(plan, store)) == (before, [("release", "done")] * 2)


@pytest.mark.parametrize("to", ["", "../v1", "v9", "no-such-config", "x" * 300, "v1 "])
def test_an_unknown_version_is_refused_with_a_list_of_known_ones(plan: Plan, store: Store, settings: Settings, tmp_path: Path, to: str) -> None:
    for package in packages(store, tmp_path, 2):
        deploy_package(package, plan, store, settings)
    with pytest.raises(ReleaseError, match="--to takes v1 ") as caught:
        roll_back(plan, store, settings, to=to)
    assert caught.value.code == "unknown_version"
    assert release_states(plan, store) == [("release", "done")] * 2


def test_a_rollback_to_a_version_whose_release_was_undone_is_refused(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    deploy_package(make_package(store, tmp_path), plan, store, settings)
    with pytest.raises(ReleaseError):
        deploy_package(with_wrong_predictions(store, make_package(store, tmp_path, "2", temperature=3.0)), plan, store, settings)
    with pytest.raises(ReleaseError) as caught:
        roll_back(plan, store, settings, to="2")
    assert caught.value.code == "was_undone"
    assert release_states(plan, store)[1:] == [("release", "rolled_back")]


def test_a_config_from_before_the_first_release_is_restored_unchecked_with_a_warning(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = packages(store, tmp_path, 2)
    elsewhere = colour_plan(endpoint=f"else-{uuid.uuid4().hex[:8]}")
    by_hand = deploy_package(first, elsewhere, store, settings).endpoint_config
    boto3.client("sagemaker").create_endpoint(EndpointName=plan.endpoint_name(), EndpointConfigName=by_hand)
    boto3.client("sagemaker").get_waiter("endpoint_in_service").wait(EndpointName=plan.endpoint_name(), WaiterConfig={"Delay": 1})
    assert deploy_package(second, plan, store, settings).previous_config == by_hand
    with caplog.at_level(logging.WARNING):
        back = roll_back(plan, store, settings)
    assert (back.endpoint_config, back.version, back.checked) == (by_hand, "unknown", 0)
    assert f"did not release {by_hand}" in caplog.text


def test_if_one_endpoint_cannot_be_rolled_back_neither_changes(store: Store, settings: Settings, tmp_path: Path) -> None:
    both = colour_plan(endpoint=f"r{uuid.uuid4().hex[:6]}-{{purpose}}", batch_endpoint={"max_concurrency": 80})
    made = [deploy_package(package, both, store, settings) for package in packages(store, tmp_path, 2)]
    assert made[0].batch is not None
    boto3.client("sagemaker").delete_endpoint_config(EndpointConfigName=made[0].batch.endpoint_config)
    with pytest.raises(ReleaseError) as caught:
        roll_back(both, store, settings)
    assert caught.value.code == "config_missing"
    assert [s.version for s in endpoint_statuses(both, store, settings)] == ["v2", "v2"]
