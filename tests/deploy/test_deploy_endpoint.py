"""Released, released again, rolled back, looked up and cleared away."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import boto3
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Release
from animl_pipeline.deploy import ReleaseRecord, ask_endpoint, clear_away, deploy_endpoint, endpoint_status, release_history, rollback_endpoint
from animl_pipeline.deploy.endpoint_names import targets_of
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE
from animl_pipeline.storage.step_cache import Store, open_store
from tests.conftest import jpeg
from tests.support.packaged_model import colour_plan, package_of
from tests.support.sagemaker_faults import read_reference, states


def test_a_release_is_made_checked_and_not_made_twice(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    first = deploy_endpoint(package, plan, store, settings)
    assert (first.changed, first.checked, first.previous_config) == (True, 3, None)
    assert first.max_difference < 1e-5
    again = deploy_endpoint(package, plan, store, settings)
    assert again == first.model_copy(update={"changed": False, "latency": again.latency})
    assert states(plan, store) == [("release", "done")]
    told = endpoint_status(plan, store, settings)
    assert (told.status, told.endpoint_config, told.version, told.unfinished) == ("InService", first.endpoint_config, "1", False)


def test_the_endpoint_answers_as_the_package_does(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    deploy_endpoint(package, plan, store, settings)
    expected = read_reference(store, package)[0]
    image = store.path(package, f"reference/{expected.image}").read_bytes()
    assert ask_endpoint(plan.endpoint_name(), image, expected.box) == pytest.approx(expected.probabilities, abs=1e-6)
    assert ask_endpoint(plan.endpoint_name(), image) != pytest.approx(expected.probabilities, abs=1e-6)


def test_a_retrained_package_gets_names_of_its_own_and_can_be_rolled_back(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    first = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    image = jpeg(colour=(200, 40, 40))
    before = ask_endpoint(plan.endpoint_name(), image)
    second = deploy_endpoint(package_of(store, tmp_path, "2", temperature=3.0), plan, store, settings)
    assert second.previous_config == first.endpoint_config
    assert {first.endpoint_config, first.sagemaker_model}.isdisjoint({second.endpoint_config, second.sagemaker_model})
    assert ask_endpoint(plan.endpoint_name(), image)["red"] < before["red"] - 0.1
    back = rollback_endpoint(plan, store, settings)
    assert (back.endpoint_config, back.version, back.checked, back.package_digest) == (first.endpoint_config, "1", 3, first.package_digest)
    assert ask_endpoint(plan.endpoint_name(), image) == before
    forth = rollback_endpoint(plan, store, settings, to="2")
    assert forth.endpoint_config == second.endpoint_config
    assert states(plan, store) == [("release", "done"), ("release", "done"), ("rollback", "done"), ("rollback", "done")]
    sagemaker = boto3.client("sagemaker")
    arn = sagemaker.describe_model(ModelName=second.sagemaker_model)["ModelArn"]
    tags = {t["Key"]: t["Value"] for t in sagemaker.list_tags(ResourceArn=arn)["Tags"]}
    assert (tags["animl:package"], tags["animl:version"]) == (second.package_digest, "2")


def test_the_same_model_with_more_concurrency_is_another_config_of_the_same_model(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    some, more = (targets_of(package, colour_plan(max_concurrency=n), store, settings)[0] for n in (20, 80))
    assert some.sagemaker_model == more.sagemaker_model
    assert some.endpoint_config != more.endpoint_config
    assert (some.endpoint, more.endpoint) == ("colours-concurrency-20", "colours-concurrency-80")


def test_there_is_nothing_before_the_first_release(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    release = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    with pytest.raises(ReleaseError, match="no config before"):
        rollback_endpoint(plan, store, settings)
    with pytest.raises(ReleaseError, match=r"serves .* already"):
        rollback_endpoint(plan, store, settings, to=release.version)
    with pytest.raises(ReleaseError, match="expected a version or an endpoint config that was released before, found 'nonsense'"):
        rollback_endpoint(plan, store, settings, to="nonsense")


def test_another_store_learns_what_is_in_service(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    first = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = open_store(Settings(store=str(tmp_path / "elsewhere" / "store")))
    found: Release = deploy_endpoint(package_of(elsewhere, tmp_path / "elsewhere"), plan, elsewhere, settings)
    assert (found.changed, found.endpoint_config) == (False, first.endpoint_config)
    records: tuple[ReleaseRecord, ...] = release_history(plan, elsewhere)
    assert [(r.state, r.reason) for r in records] == [("done", "found in service")]


def test_clearing_away_leaves_what_is_in_use_what_may_be_gone_back_to_and_what_is_not_ours(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    sagemaker, made = boto3.client("sagemaker"), []
    for i in range(4):
        made.append(deploy_endpoint(package_of(store, tmp_path, f"{plan.endpoint_name()[-4:]}{i}", temperature=1.0 + i), plan, store, settings))
    sagemaker.create_endpoint(EndpointName=f"someone-{uuid.uuid4().hex[:6]}", EndpointConfigName=made[0].endpoint_config)
    sagemaker.create_model(
        ModelName=f"colours-by-hand-{uuid.uuid4().hex[:6]}",
        ExecutionRoleArn=ROLE,
        PrimaryContainer={
            "Image": IMAGE,
            "ModelDataUrl": sagemaker.describe_model(ModelName=made[0].sagemaker_model)["PrimaryContainer"]["ModelDataUrl"],
        },
    )
    looked = clear_away(plan, store, settings, keep=2, look_only=True)
    assert (looked.configs, looked.models) == ((made[1].endpoint_config,), (made[1].sagemaker_model,))
    assert clear_away(plan, store, settings, keep=2) == looked
    assert clear_away(plan, store, settings, keep=2).all() == ()
    assert len(looked.packages) == 1
    assert "in use by someone" in looked.kept[made[0].endpoint_config]
    assert rollback_endpoint(plan, store, settings).endpoint_config == made[2].endpoint_config
    with pytest.raises(ReleaseError, match=rf"config {made[1].endpoint_config} .version {made[1].version}. in SageMaker, found none: .*release gc"):
        rollback_endpoint(plan, store, settings, to=made[1].version)


def test_a_release_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, animl_pipeline.deploy; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "torchvision", "timm", "lightning", "onnxruntime", "prefect", "boto3"}
