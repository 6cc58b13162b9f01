"""Releases that go wrong: a bad package, a program that does not start, a kill, a fault of the cloud; the old version stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Artifact
from animl_pipeline.deploy import deploy_endpoint, endpoint_status, release_history
from animl_pipeline.dev.sagemaker_local import Addresses
from animl_pipeline.storage.step_cache import Store
from tests.support.endpoint_process import until
from tests.support.packaged_model import package_of
from tests.support.sagemaker_faults import broken, faulty, spoiled, states


def test_a_bad_update_is_rolled_back_and_says_so(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    good = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    bad = spoiled(store, package_of(store, tmp_path, "2", temperature=3.0))
    with pytest.raises(ReleaseError, match=r"\d of 3 golden crops unlike offline.*rolled back to " + good.endpoint_config):
        deploy_endpoint(bad, plan, store, settings)
    told = endpoint_status(plan, store, settings)
    assert (told.status, told.endpoint_config, told.unfinished) == ("InService", good.endpoint_config, False)
    assert states(plan, store) == [("release", "done"), ("release", "rolled_back")]
    assert "unlike offline" in release_history(plan, store)[-1].reason


def test_a_bad_first_release_leaves_no_endpoint(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="the endpoint was removed"):
        deploy_endpoint(spoiled(store, package_of(store, tmp_path)), plan, store, settings)
    assert endpoint_status(plan, store, settings).status == "absent"
    assert deploy_endpoint(package_of(store, tmp_path), plan, store, settings).changed


def test_a_program_that_does_not_start_shows_its_reason_and_the_old_one_stays(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    good = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    with pytest.raises(ReleaseError, match=r"did not come up.*Failed to extract model data archive.*rolled back"):
        deploy_endpoint(broken(store, package_of(store, tmp_path, "2")), plan, store, settings)
    assert endpoint_status(plan, store, settings).endpoint_config == good.endpoint_config


def test_a_first_program_that_does_not_start_is_cleared_away(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"did not come up.*the endpoint was removed"):
        deploy_endpoint(broken(store, package_of(store, tmp_path)), plan, store, settings)
    assert endpoint_status(plan, store, settings).status == "absent"


DEPLOY = """
import sys
from animl_pipeline.deploy import deploy_endpoint
from animl_pipeline.config import Plan
from animl_pipeline.core.records import Artifact
from animl_pipeline.config.settings import load_settings
from animl_pipeline.storage.step_cache import open_store
settings = load_settings()
deploy_endpoint(Artifact.model_validate_json(sys.argv[1]), Plan.model_validate_json(sys.argv[2]), open_store(settings), settings)
"""


def kill_in_the_middle(cloud: Addresses, package: Artifact, plan: Plan, store: Store, settings: Settings) -> None:
    """A release in a process of its own, killed while the endpoint changes, which takes a while as on AWS."""
    variables = os.environ | {"ANIML_STORE": settings.store, "ANIML_ROLE_ARN": settings.role_arn, "ANIML_ENDPOINT_IMAGE": settings.endpoint_image}
    line = [sys.executable, "-c", DEPLOY, package.model_dump_json(), plan.model_dump_json(by_alias=True)]
    with faulty(cloud, switch_s=5), subprocess.Popen(line, env=variables) as process:

        def changes() -> bool:
            assert process.poll() is None, "it had ended before it could be killed"
            state = endpoint_status(plan, store, settings)
            return state.unfinished and state.status in {"Creating", "Updating"}

        until(changes, "the endpoint changes")
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert endpoint_status(plan, store, settings).unfinished


def test_a_killed_release_is_finished_by_the_next_one(cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    kill_in_the_middle(cloud, package, plan, store, settings)
    release = deploy_endpoint(package, plan, store, settings)
    assert (release.changed, release.checked) == (False, 3)
    assert states(plan, store) == [("release", "done")]
    assert not endpoint_status(plan, store, settings).unfinished


def test_a_killed_bad_release_is_undone_by_the_next_one(cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    good = package_of(store, tmp_path)
    first = deploy_endpoint(good, plan, store, settings)
    kill_in_the_middle(cloud, spoiled(store, package_of(store, tmp_path, "2", temperature=3.0)), plan, store, settings)
    again = deploy_endpoint(good, plan, store, settings)
    assert (again.changed, again.endpoint_config) == (False, first.endpoint_config)
    assert states(plan, store) == [("release", "done"), ("release", "rolled_back")]


def test_a_throttled_api_is_asked_again(cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    with faulty(cloud, throttled=2, invocations_throttled=1):
        assert deploy_endpoint(package_of(store, tmp_path), plan, store, settings).checked == 3


FAULTS: dict[str, tuple[dict[str, float], str]] = {
    "an image that cannot start": ({"image_cannot_start": 1}, "CannotStartContainerError"),
    "a program that does not answer /ping": ({"never_pings": 1, "ping_s": 0.3}, "did not pass the ping health check"),
    "a fault of AWS's own": ({"update_fails": 1}, "Request to service failed"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_an_update_that_aws_cannot_carry_out_leaves_the_old_one_in_service(
    what: str, cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    faults, said = FAULTS[what]
    good = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    with faulty(cloud, **faults), pytest.raises(ReleaseError, match=rf"did not come up.*{said}.*rolled back to {good.endpoint_config}"):
        deploy_endpoint(package_of(store, tmp_path, "2"), plan, store, settings)
    assert endpoint_status(plan, store, settings).endpoint_config == good.endpoint_config
    assert said in release_history(plan, store)[-1].reason


def test_a_release_that_takes_too_long_says_so_and_the_next_one_settles_it(
    cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    package = package_of(store, tmp_path)
    hasty = plan.model_copy(update={"release": plan.release.model_copy(update={"timeout_s": 0.3})})
    with faulty(cloud, switch_s=2), pytest.raises(ReleaseError, match=r"is still Creating after 0 s.*raise release.timeout_s"):
        deploy_endpoint(package, hasty, store, settings)
    assert endpoint_status(plan, store, settings).unfinished
    assert deploy_endpoint(package, plan, store, settings).checked == 3
    assert states(plan, store) == [("release", "done")]
