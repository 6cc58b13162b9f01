"""Releases, repeated releases, rollbacks, status and cleanup."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import uuid
from pathlib import Path

import boto3
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.release_and_reference_types import Release
from animl_pipeline.deploy import ReleaseRecord, delete_unused, deploy_package, invoke_endpoint, realtime_status, release_records, roll_back
from animl_pipeline.deploy.resource_names import release_targets
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE
from animl_pipeline.storage.store import Store, open_store
from tests.conftest import jpeg
from tests.support.packaged_model import colour_plan, make_package
from tests.support.sagemaker_faults import read_predictions, release_states


def test_a_release_is_checked_and_not_repeated(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    first = deploy_package(package, plan, store, settings)
    assert (first.changed, first.checked, first.previous_config) == (True, 3, None)
    assert first.max_difference < 1e-5
    again = deploy_package(package, plan, store, settings)
    assert again == first.model_copy(update={"changed": False, "latency": again.latency})
    assert release_states(plan, store) == [("release", "done")]
    now = realtime_status(plan, store, settings)
    assert (now.status, now.endpoint_config, now.version, now.unfinished) == ("InService", first.endpoint_config, "1", False)


def test_a_package_that_was_forged_in_the_bucket_is_replaced(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package, other = make_package(store, tmp_path), make_package(store, tmp_path, "2", temperature=3.0)
    target, s3 = release_targets(package, plan, store, settings)[0], boto3.client("s3")
    whole, forged = (store.path(p, "model.tar.gz").read_bytes() for p in (package, other))
    for _ in range(2):  # before the release, and while the endpoint serves it
        metadata = {"sha256": hashlib.sha256(whole).hexdigest()}
        s3.put_object(Bucket=target.bucket, Key=target.key, Body=forged, Metadata=metadata)
        deploy_package(package, plan, store, settings)
        assert s3.get_object(Bucket=target.bucket, Key=target.key)["Body"].read() == whole


def test_the_endpoint_answers_as_the_package_does(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    deploy_package(package, plan, store, settings)
    expected = read_predictions(store, package)[0]
    image = store.path(package, f"reference_predictions/{expected.image}").read_bytes()
    assert invoke_endpoint(plan.endpoint_name(), image, expected.box) == pytest.approx(expected.probabilities, abs=1e-6)
    assert invoke_endpoint(plan.endpoint_name(), image) != pytest.approx(expected.probabilities, abs=1e-6)


def test_a_retrained_package_gets_new_names_and_can_be_rolled_back(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    first = deploy_package(make_package(store, tmp_path), plan, store, settings)
    image = jpeg(colour=(200, 40, 40))
    before = invoke_endpoint(plan.endpoint_name(), image)
    second = deploy_package(make_package(store, tmp_path, "2", temperature=3.0), plan, store, settings)
    assert second.previous_config == first.endpoint_config
    assert {first.endpoint_config, first.sagemaker_model}.isdisjoint({second.endpoint_config, second.sagemaker_model})
    assert invoke_endpoint(plan.endpoint_name(), image)["red"] < before["red"] - 0.1
    back = roll_back(plan, store, settings)
    assert (back.endpoint_config, back.version, back.checked, back.package_digest) == (first.endpoint_config, "1", 3, first.package_digest)
    assert invoke_endpoint(plan.endpoint_name(), image) == before
    forth = roll_back(plan, store, settings, to="2")
    assert forth.endpoint_config == second.endpoint_config
    assert release_states(plan, store) == [("release", "done"), ("release", "done"), ("rollback", "done"), ("rollback", "done")]
    sagemaker = boto3.client("sagemaker")
    arn = sagemaker.describe_model(ModelName=second.sagemaker_model)["ModelArn"]
    tags = {t["Key"]: t["Value"] for t in sagemaker.list_tags(ResourceArn=arn)["Tags"]}
    assert (tags["animl:package"], tags["animl:version"]) == (second.package_digest, "2")


def test_another_concurrency_gives_another_config_of_the_same_model(store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    some, more = (release_targets(package, colour_plan(max_concurrency=n), store, settings)[0] for n in (20, 80))
    assert some.sagemaker_model == more.sagemaker_model
    assert some.endpoint_config != more.endpoint_config
    assert (some.endpoint, more.endpoint) == ("colours-concurrency-20", "colours-concurrency-80")


def test_a_rollback_needs_an_earlier_release(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    release = deploy_package(make_package(store, tmp_path), plan, store, settings)
    for to, code in ((None, "nothing_earlier"), (release.version, "already_served"), ("nonsense", "unknown_version")):
        with pytest.raises(ReleaseError) as caught:
            roll_back(plan, store, settings, to=to)
        assert caught.value.code == code


def test_a_release_from_another_store_records_what_is_in_service(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    first = deploy_package(make_package(store, tmp_path), plan, store, settings)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = open_store(Settings(store=str(tmp_path / "elsewhere" / "store")))
    found: Release = deploy_package(make_package(elsewhere, tmp_path / "elsewhere"), plan, elsewhere, settings)
    assert (found.changed, found.endpoint_config) == (False, first.endpoint_config)
    records: tuple[ReleaseRecord, ...] = release_records(plan, elsewhere)
    assert [(r.state, r.reason) for r in records] == [("done", "found in service")]


def test_cleanup_keeps_what_is_in_use_what_a_rollback_needs_and_what_others_made(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    sagemaker, made = boto3.client("sagemaker"), []
    for i in range(4):
        made.append(deploy_package(make_package(store, tmp_path, f"{plan.endpoint_name()[-4:]}{i}", temperature=1.0 + i), plan, store, settings))
    sagemaker.create_endpoint(EndpointName=f"someone-{uuid.uuid4().hex[:6]}", EndpointConfigName=made[0].endpoint_config)
    sagemaker.create_model(
        ModelName=f"colours-by-hand-{uuid.uuid4().hex[:6]}",
        ExecutionRoleArn=ROLE,
        PrimaryContainer={
            "Image": IMAGE,
            "ModelDataUrl": sagemaker.describe_model(ModelName=made[0].sagemaker_model)["PrimaryContainer"]["ModelDataUrl"],
        },
    )
    dry_run = delete_unused(plan, store, settings, keep_versions=2, dry_run=True)
    assert (dry_run.configs, dry_run.models) == ((made[1].endpoint_config,), (made[1].sagemaker_model,))
    assert delete_unused(plan, store, settings, keep_versions=2) == dry_run
    assert delete_unused(plan, store, settings, keep_versions=2).all() == ()
    assert len(dry_run.packages) == 1
    assert "in use by someone" in dry_run.kept[made[0].endpoint_config]
    assert roll_back(plan, store, settings).endpoint_config == made[2].endpoint_config
    with pytest.raises(ReleaseError) as caught:
        roll_back(plan, store, settings, to=made[1].version)
    assert caught.value.code == "config_missing"


def test_a_release_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, animl_pipeline.deploy; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "torchvision", "timm", "lightning", "onnxruntime", "prefect", "boto3"}
