"""Releases that fail (wrong answers, a program that does not start, a kill, a fault of AWS): the old version stays in service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.deploy import deploy_package, realtime_status, release_records
from animl_pipeline.dev.sagemaker_local import Addresses
from animl_pipeline.storage.store import Store
from tests.support.endpoint_process import wait_until
from tests.support.packaged_model import make_package
from tests.support.sagemaker_faults import release_states, with_broken_archive, with_faults, with_wrong_predictions


def test_an_update_with_wrong_answers_is_rolled_back(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    good = deploy_package(make_package(store, tmp_path), plan, store, settings)
    bad = with_wrong_predictions(store, make_package(store, tmp_path, "2", temperature=3.0))
    with pytest.raises(ReleaseError) as caught:
        deploy_package(bad, plan, store, settings)
    assert (caught.value.code, caught.value.details["rolled_back"], caught.value.retryable) == ("answers_differ", True, False)
    now = realtime_status(plan, store, settings)
    assert (now.status, now.endpoint_config, now.unfinished) == ("InService", good.endpoint_config, False)
    assert release_states(plan, store) == [("release", "done"), ("release", "rolled_back")]
    assert "differs from the offline model" in release_records(plan, store)[-1].reason


def test_a_first_release_with_wrong_answers_leaves_no_endpoint(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError):
        deploy_package(with_wrong_predictions(store, make_package(store, tmp_path)), plan, store, settings)
    assert realtime_status(plan, store, settings).status == "absent"
    assert deploy_package(make_package(store, tmp_path), plan, store, settings).changed


def test_if_the_new_program_does_not_start_the_old_version_stays(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    good = deploy_package(make_package(store, tmp_path), plan, store, settings)
    with pytest.raises(ReleaseError, match="Failed to extract model data archive"):
        deploy_package(with_broken_archive(store, make_package(store, tmp_path, "2")), plan, store, settings)
    assert realtime_status(plan, store, settings).endpoint_config == good.endpoint_config


def test_if_the_first_program_does_not_start_the_endpoint_is_removed(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError) as caught:
        deploy_package(with_broken_archive(store, make_package(store, tmp_path)), plan, store, settings)
    assert caught.value.code == "not_in_service"
    assert realtime_status(plan, store, settings).status == "absent"


DEPLOY = """
import sys
from animl_pipeline.deploy import deploy_package
from animl_pipeline.config import Plan
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.config.settings import load_settings
from animl_pipeline.storage.store import open_store
settings = load_settings()
deploy_package(Artifact.model_validate_json(sys.argv[1]), Plan.model_validate_json(sys.argv[2]), open_store(settings), settings)
"""


def kill_during_update(cloud: Addresses, package: Artifact, plan: Plan, store: Store, settings: Settings) -> None:
    """Run a release in its own process and kill it while the endpoint updates."""
    variables = os.environ | {"ANIML_STORE": settings.store, "ANIML_ROLE_ARN": settings.role_arn, "ANIML_ENDPOINT_IMAGE": settings.endpoint_image}
    line = [sys.executable, "-c", DEPLOY, package.model_dump_json(), plan.model_dump_json(by_alias=True)]
    with with_faults(cloud, switch_s=5), subprocess.Popen(line, env=variables) as process:

        def is_updating() -> bool:
            assert process.poll() is None, "the release ended before it could be killed"
            state = realtime_status(plan, store, settings)
            return state.unfinished and state.status in {"Creating", "Updating"}

        wait_until(is_updating, "the endpoint updates")
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert realtime_status(plan, store, settings).unfinished


def test_a_killed_release_is_finished_by_the_next_one(cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    kill_during_update(cloud, package, plan, store, settings)
    release = deploy_package(package, plan, store, settings)
    assert (release.changed, release.checked) == (False, 3)
    assert release_states(plan, store) == [("release", "done")]
    assert not realtime_status(plan, store, settings).unfinished


def test_a_killed_bad_release_is_undone_by_the_next_one(cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    good = make_package(store, tmp_path)
    first = deploy_package(good, plan, store, settings)
    kill_during_update(cloud, with_wrong_predictions(store, make_package(store, tmp_path, "2", temperature=3.0)), plan, store, settings)
    again = deploy_package(good, plan, store, settings)
    assert (again.changed, again.endpoint_config) == (False, first.endpoint_config)
    assert release_states(plan, store) == [("release", "done"), ("release", "rolled_back")]


def test_throttled_calls_are_repeated(cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    with with_faults(cloud, throttled=2, invocations_throttled=1):
        assert deploy_package(make_package(store, tmp_path), plan, store, settings).checked == 3


FAULTS: dict[str, tuple[dict[str, float], str]] = {
    "the image cannot start": ({"image_cannot_start": 1}, "CannotStartContainerError"),
    "the program does not answer /ping": ({"never_pings": 1, "ping_s": 0.3}, "did not pass the ping health check"),
    "AWS fails": ({"update_fails": 1}, "Request to service failed"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_if_aws_cannot_update_the_endpoint_the_old_version_stays(
    what: str, cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    faults, reason = FAULTS[what]
    good = deploy_package(make_package(store, tmp_path), plan, store, settings)
    with with_faults(cloud, **faults), pytest.raises(ReleaseError) as caught:
        deploy_package(make_package(store, tmp_path, "2"), plan, store, settings)
    assert (caught.value.code, caught.value.details["rolled_back"]) == ("not_in_service", True)
    assert realtime_status(plan, store, settings).endpoint_config == good.endpoint_config
    assert reason in release_records(plan, store)[-1].reason


def test_a_release_that_takes_too_long_stops_and_the_next_one_finishes_it(
    cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    package = make_package(store, tmp_path)
    hasty = plan.model_copy(update={"release": plan.release.model_copy(update={"timeout_s": 0.3})})
    with with_faults(cloud, switch_s=2), pytest.raises(ReleaseError) as caught:
        deploy_package(package, hasty, store, settings)
    assert caught.value.code == "not_undone"
    assert realtime_status(plan, store, settings).unfinished
    assert deploy_package(package, plan, store, settings).checked == 3
    assert release_states(plan, store) == [("release", "done")]
