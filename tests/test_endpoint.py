"""The last door against a real local SageMaker: release, update, a bad package rolled back, a killed release found again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from pydantic import SecretStr

from animl_pipeline.endpoint import (
    ReleaseRecord,
    ask_endpoint,
    clear_away,
    deploy_endpoint,
    endpoint_status,
    endpoints_status,
    foresee_release,
    register_model,
    release_history,
    rollback_endpoint,
)
from animl_pipeline.endpoint.names import parameter_of, targets_of
from animl_pipeline.errors import PackageError, ReleaseError, SettingsError
from animl_pipeline.plan import Plan
from animl_pipeline.records import Answer, Artifact, Box, Counts, Release
from animl_pipeline.sagemaker_local import IMAGE, ROLE, Addresses, Faults, local_sagemaker
from animl_pipeline.settings import Settings
from animl_pipeline.store import Made, Store, Workspace, open_store
from tests.animl_server import AnimlSite, animl
from tests.conftest import jpeg
from tests.packaged import colour_plan, package_of, report_of

BUCKET = "animl-model-zoo"
WHERE: dict[str, Any] = {"role_arn": ROLE, "endpoint_image": IMAGE, "stage": "dev"}


@pytest.fixture(scope="module", autouse=True)
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A local SageMaker and S3 which boto3 finds through its usual variables."""
    with local_sagemaker(tmp_path_factory.mktemp("cloud") / "state") as addresses, pytest.MonkeyPatch.context() as patch:
        for name, value in addresses.variables().items():
            patch.setenv(name, value)
        boto3.setup_default_session()  # an earlier test's session remembers credentials
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        yield addresses


@pytest.fixture(autouse=True)
def _no_endpoint_outlives_its_test() -> Iterator[None]:
    """Each is a process."""
    yield
    sagemaker = boto3.client("sagemaker")
    for page in sagemaker.get_paginator("list_endpoints").paginate():
        for endpoint in page["Endpoints"]:
            if endpoint["EndpointStatus"] in {"InService", "Failed"}:
                sagemaker.delete_endpoint(EndpointName=endpoint["EndpointName"])


@contextmanager
def faulty(cloud: Addresses, **faults: float) -> Iterator[None]:
    """Let something go wrong in the cloud until the end of the block."""
    cloud.turn(**faults)
    try:
        yield
    finally:
        cloud.turn(**Faults().model_dump())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=str(tmp_path / "store"), data=tmp_path, cache=tmp_path / "cache", **WHERE)


@pytest.fixture
def plan() -> Plan:
    """A plan whose endpoint no other test has."""
    return colour_plan(endpoint=f"colours-{uuid.uuid4().hex[:8]}")


def spoiled(store: Store, package: Artifact) -> Artifact:
    """The package with golden answers that its model does not give: what a model broken on its way to the endpoint looks like."""

    def build(space: Workspace) -> Made:
        for name in store.files(package):
            (space.out / name).parent.mkdir(exist_ok=True, parents=True)
            (space.out / name).write_bytes(store.path(package, name).read_bytes())
        answers = read_golden(store, package)
        turned = [
            a.model_copy(update={"probabilities": dict(zip(a.probabilities, reversed(a.probabilities.values()), strict=True))}) for a in answers
        ]
        (space.out / "golden.json").write_text("[" + ",".join(a.model_dump_json() for a in turned) + "]")
        return Made(Counts(kept=len(answers), unit="golden answers"))

    return store.make("package", room="records", inputs={"package": package}, build=build)


def read_golden(store: Store, package: Artifact) -> list[Answer]:
    return [Answer.model_validate(row) for row in json.loads(store.path(package, "golden.json").read_bytes())]


def states(plan: Plan, store: Store) -> list[tuple[str, str]]:
    return [(r.kind, r.state) for r in release_history(plan, store)]


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
    expected = read_golden(store, package)[0]
    picture = store.path(package, f"golden/{expected.picture}").read_bytes()
    assert ask_endpoint(plan.endpoint_name(), picture, expected.box) == pytest.approx(expected.probabilities, abs=1e-6)
    assert ask_endpoint(plan.endpoint_name(), picture) != pytest.approx(expected.probabilities, abs=1e-6)


def test_a_retrained_package_gets_names_of_its_own_and_can_be_rolled_back(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    first = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    picture = jpeg(colour=(200, 40, 40))
    before = ask_endpoint(plan.endpoint_name(), picture)
    second = deploy_endpoint(package_of(store, tmp_path, "2", temperature=3.0), plan, store, settings)
    assert second.previous_config == first.endpoint_config
    assert {first.endpoint_config, first.sagemaker_model}.isdisjoint({second.endpoint_config, second.sagemaker_model})
    assert ask_endpoint(plan.endpoint_name(), picture)["red"] < before["red"] - 0.1
    back = rollback_endpoint(plan, store, settings)
    assert (back.endpoint_config, back.version, back.checked, back.package_digest) == (first.endpoint_config, "1", 3, first.package_digest)
    assert ask_endpoint(plan.endpoint_name(), picture) == before
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


def broken(store: Store, package: Artifact) -> Artifact:
    """The package with an archive that no program can unpack."""

    def build(space: Workspace) -> Made:
        for name in store.files(package):
            (space.out / name).parent.mkdir(exist_ok=True, parents=True)
            (space.out / name).write_bytes(b"broken" if name == "model.tar.gz" else store.path(package, name).read_bytes())
        return Made(Counts(kept=3, unit="golden answers"))

    return store.make("package", room="records", inputs={"package": package}, config={"broken": True}, build=build)


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
from animl_pipeline.endpoint import deploy_endpoint
from animl_pipeline.plan import Plan
from animl_pipeline.records import Artifact
from animl_pipeline.settings import load_settings
from animl_pipeline.store import open_store
settings = load_settings()
deploy_endpoint(Artifact.model_validate_json(sys.argv[1]), Plan.model_validate_json(sys.argv[2]), open_store(settings), settings)
"""


def kill_in_the_middle(package: Artifact, plan: Plan, store: Store, settings: Settings) -> None:
    """A release in a process of its own, killed between the change of the endpoint and the end of its check."""
    before = endpoint_status(plan, store, settings).endpoint_config
    variables = os.environ | {"ANIML_STORE": settings.store, "ANIML_ROLE_ARN": settings.role_arn, "ANIML_ENDPOINT_IMAGE": settings.endpoint_image}
    with subprocess.Popen([sys.executable, "-c", DEPLOY, package.model_dump_json(), plan.model_dump_json(by_alias=True)], env=variables) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            state = endpoint_status(plan, store, settings)
            if state.unfinished and (state.status in {"Creating", "Updating"} or state.endpoint_config != before):
                break
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it had ended before it could be killed"
    assert endpoint_status(plan, store, settings).unfinished


def test_a_killed_release_is_finished_by_the_next_one(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    kill_in_the_middle(package, plan, store, settings)
    release = deploy_endpoint(package, plan, store, settings)
    assert (release.changed, release.checked) == (False, 3)
    assert states(plan, store) == [("release", "done")]
    assert not endpoint_status(plan, store, settings).unfinished


def test_a_killed_bad_release_is_undone_by_the_next_one(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    good = package_of(store, tmp_path)
    first = deploy_endpoint(good, plan, store, settings)
    kill_in_the_middle(spoiled(store, package_of(store, tmp_path, "2", temperature=3.0)), plan, store, settings)
    again = deploy_endpoint(good, plan, store, settings)
    assert (again.changed, again.endpoint_config) == (False, first.endpoint_config)
    assert states(plan, store) == [("release", "done"), ("release", "rolled_back")]


def test_what_is_missing_is_named(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    with pytest.raises(SettingsError, match="ANIML_ROLE_ARN"):
        deploy_endpoint(package, plan, store, settings.model_copy(update={"role_arn": ""}))
    with pytest.raises(SettingsError, match="ANIML_ENDPOINT_IMAGE"):
        deploy_endpoint(package, plan, store, settings.model_copy(update={"endpoint_image": ""}))
    with pytest.raises(ReleaseError, match="expected the bucket s3://no-such-bucket, found none; make it, or set ANIML_MODELS_BUCKET"):
        deploy_endpoint(package, plan, store, settings.model_copy(update={"models_bucket": "no-such-bucket"}))
    with pytest.raises(ReleaseError, match="there is no endpoint"):
        rollback_endpoint(plan, store, settings)
    with pytest.raises(ReleaseError, match="not found"):
        ask_endpoint(plan.endpoint_name(), jpeg(), Box.of([0, 0, 1, 1]))
    assert release_history(plan, store) == ()


def test_a_service_that_cannot_be_reached_is_one_line(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ReleaseError, match="AWS cannot be asked") as caught:
        deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    assert "\n" not in str(caught.value)


def test_there_is_nothing_before_the_first_release(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    release = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    with pytest.raises(ReleaseError, match="no config before"):
        rollback_endpoint(plan, store, settings)
    with pytest.raises(ReleaseError, match=r"serves .* already"):
        rollback_endpoint(plan, store, settings, to=release.version)
    with pytest.raises(ReleaseError, match="expected the endpoint config 'nonsense'"):
        rollback_endpoint(plan, store, settings, to="nonsense")


def test_another_store_learns_what_is_in_service(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    first = deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = open_store(Settings(store=str(tmp_path / "elsewhere" / "store")))
    found: Release = deploy_endpoint(package_of(elsewhere, tmp_path / "elsewhere"), plan, elsewhere, settings)
    assert (found.changed, found.endpoint_config) == (False, first.endpoint_config)
    records: tuple[ReleaseRecord, ...] = release_history(plan, elsewhere)
    assert [(r.state, r.reason) for r in records] == [("done", "found in service")]


def test_a_package_without_metrics_is_not_released(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)

    def build(space: Workspace) -> Made:
        card = store.path(package, "card.json").read_text()
        (space.out / "card.json").write_text(card[: card.index('"metrics"')] + '"metrics": {}}')
        return Made(Counts(kept=0))

    with pytest.raises(PackageError, match="no metrics"):
        deploy_endpoint(store.make("package", room="records", config={"metrics": False}, build=build), plan, store, settings)


def test_a_throttled_api_is_asked_again(cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    with faulty(cloud, throttled=2, invocations_throttled=1):
        assert deploy_endpoint(package_of(store, tmp_path), plan, store, settings).checked == 3


FAULTS = {
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
    with pytest.raises(ReleaseError, match="expected the endpoint config"):
        rollback_endpoint(plan, store, settings, to=made[1].version)


def test_a_report_that_says_no_is_refused_unless_somebody_says_why_not(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    held_back = report_of(package, store, verdict="hold", reasons=("red lost 12 % recall",))
    with pytest.raises(ReleaseError, match=r"to hold it back: red lost 12 % recall.*--force"):
        deploy_endpoint(package, plan, store, settings, report=held_back)
    with pytest.raises(ReleaseError, match="needs more data"):
        deploy_endpoint(package, plan, store, settings, report=report_of(package, store, verdict="need_more_data"))
    other = package_of(store, tmp_path, "2", temperature=3.0)
    with pytest.raises(ReleaseError, match="so that what was judged is what is released"):
        deploy_endpoint(package, plan, store, settings, report=report_of(other, store, verdict="promote"))
    assert endpoint_status(plan, store, settings).status == "absent"
    deploy_endpoint(package, plan, store, settings, report=held_back, force="the island needs it")
    assert release_history(plan, store)[-1].forced == "the island needs it"
    deploy_endpoint(other, plan, store, settings, report=report_of(other, store, verdict="promote"), force="not needed")
    assert release_history(plan, store)[-1].forced == ""


AHEAD: dict[str, tuple[dict[str, Any], dict[str, float], str]] = {
    "a role that is no ARN": ({"role_arn": "sagemaker"}, {}, "ANIML_ROLE_ARN: expected arn:aws:iam"),
    "a role of another account": ({"role_arn": "arn:aws:iam::999999999999:role/local"}, {}, "of the account 999999999999"),
    "a role that is not there": ({"role_arn": ROLE.replace("local", "nobody")}, {}, "IAM knows no role nobody"),
    "a role that does not trust SageMaker": ({"role_arn": ROLE.replace("local", "lambda-only")}, {}, "does not trust sagemaker.amazonaws.com"),
    "an image that is not in ECR": ({"endpoint_image": IMAGE.replace(":local", ":none")}, {}, "ECR holds no animl-endpoint with none"),
    "a quota that is too small": ({}, {"quota_concurrency": 10}, "is 10, the plan wants 20"),
}


@pytest.mark.parametrize("what", AHEAD)
def test_what_would_stand_in_the_way_is_found_before_anything_is_touched(
    what: str, cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    values, faults, said = AHEAD[what]
    iam = boto3.client("iam")
    if "lambda-only" in str(values) and not [r for r in iam.list_roles()["Roles"] if r["RoleName"] == "lambda-only"]:
        trust = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}],
        }
        iam.create_role(RoleName="lambda-only", AssumeRolePolicyDocument=json.dumps(trust))
    with faulty(cloud, **faults), pytest.raises(ReleaseError, match=f"{said}.*nothing was changed"):
        deploy_endpoint(package_of(store, tmp_path), plan, store, settings.model_copy(update=values))
    assert release_history(plan, store) == ()


@contextmanager
def denying() -> Iterator[str]:
    """A service that denies everything; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"__type": "AccessDeniedException", "message": "not you"}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_where_only_the_permission_to_look_is_lacking_it_is_named_and_stops_nobody(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with denying() as address, caplog.at_level("WARNING"):
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", address)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", address)
        deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    assert "lacks ecr:DescribeImages" in caplog.text
    assert "lacks servicequotas:ListServiceQuotas" in caplog.text


def test_the_documented_policy_holds_every_action_that_the_code_takes() -> None:
    root = Path(__file__).parents[1]
    policy = json.loads(re.findall(r"```json\n(.*?)```", (root / "docs" / "release.md").read_text(), re.DOTALL)[0])
    allowed = {a for s in policy["Statement"] for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])}
    code = "".join(p.read_text() for p in (root / "animl_pipeline" / "endpoint").glob("*.py"))
    operations = boto3.client("sagemaker").meta.method_to_api_mapping
    called = set(re.findall(r"sagemaker\.(\w+)\(", code)) | set(re.findall(r'sagemaker\.get_paginator\("(\w+)"\)', code))
    wanted = {f"sagemaker:{operations[name]}" for name in called if name in operations}
    assert len(wanted) >= 14
    assert wanted - allowed == set()


def test_a_dry_run_says_what_would_change_and_changes_nothing(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    before = foresee_release(package, plan, store, settings)
    assert [f.state for f in before.findings] == ["good"] * 4
    assert all(line.now is None for line in before.parts[0].lines)
    assert "$0 at rest" in before.parts[0].note
    assert endpoint_status(plan, store, settings).status == "absent"
    deploy_endpoint(package, plan, store, settings)
    assert foresee_release(package, plan, store, settings).changes == 0
    larger = plan.model_copy(update={"release": plan.release.model_copy(update={"memory_mb": 2048})})
    changed = {line.what: (line.now, line.then) for line in foresee_release(package, larger, store, settings).parts[0].lines if line.changes}
    assert changed.keys() == {"config", "size"}
    assert changed["size"] == ("serverless, 6144 MB, 20 at a time", "serverless, 2048 MB, 20 at a time")
    held_back = foresee_release(package, plan, store, settings, report=report_of(package, store, verdict="hold"))
    assert "to hold it back" in held_back.refused


RULES: list[dict[str, Any]] = [
    {"_id": "r1", "name": "detect", "event": {"type": "image-added"}, "action": {"type": "run-inference", "mlModel": "megadetector_v5a"}},
    {
        "_id": "r2",
        "name": "classify",
        "event": {"type": "label-added", "label": "animal"},
        "action": {
            "type": "run-inference",
            "mlModel": "colours",
            "country": "USA",
            "categoryConfig": {"red": {"confThreshold": 0.33, "disabled": False}, "purple": {"confThreshold": 0.8, "disabled": False}},
        },
    },
    {
        "_id": "r3",
        "name": "alert",
        "event": {"type": "label-added", "label": "red"},
        "action": {"type": "send-alert", "alertRecipients": ["a@b.org"]},
    },
]


@pytest.fixture
def registered(settings: Settings) -> Iterator[tuple[AnimlSite, Plan, Settings]]:
    """Animl with automation rules, a plan that tells it everything, and settings that lead there."""
    parameter = f"/ml/{uuid.uuid4().hex[:6]}-{{purpose}}-{{stage}}"
    plan = colour_plan(
        endpoint=f"reg-{uuid.uuid4().hex[:6]}",
        register={"parameter": parameter, "thresholds": {"green": 0.6}, "disabled": ["blue"], "rules_of": ["isle"]},
    )
    with animl([]) as site:
        site.rules = json.loads(json.dumps(RULES))
        known = {"api_url": site.url, "id_token": SecretStr("token-of-a-service-user"), "poll_s": 0.01}
        yield site, plan, settings.model_copy(update=known)


def test_animl_is_told_by_ssm_a_document_and_rules_in_which_people_keep_their_thresholds(
    registered: tuple[AnimlSite, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    package = package_of(store, tmp_path)
    with pytest.raises(ReleaseError, match=r"SSM shall name the endpoint .*, and there is none"):
        register_model(package, plan, store, settings)
    deploy_endpoint(package, plan, store, settings)
    told = register_model(package, plan, store, settings)
    values = {n: boto3.client("ssm").get_parameter(Name=n)["Parameter"]["Value"] for n in told.parameters}
    assert set(values.values()) == {plan.endpoint_name()}
    assert [n.split("-")[1] for n in values] == ["realtime", "batch"]
    assert site.rules[1]["action"]["categoryConfig"] == {
        "red": {"confThreshold": 0.33, "disabled": False},
        "green": {"confThreshold": 0.6, "disabled": False},
        "blue": {"confThreshold": 0.8, "disabled": True},
    }
    assert [site.rules[0], site.rules[2]] == [RULES[0], RULES[2]]
    assert site.rules[1]["action"]["country"] == "USA"
    assert told.rules == {"isle": "written"}
    assert register_model(package, plan, store, settings).rules == {"isle": "as it was"}
    assert site.asked["updateAutomationRules"] == 1
    files = {name: (Path(told.folder) / name).read_text() for name in told.files}
    document = json.loads(files["mlmodel.json"])
    assert (document["_id"], document["version"], document["expectsCrops"]) == ("colours", "1", True)
    assert [c["_id"] for c in document["categories"]] == ["red", "green", "blue"]
    assert "db.getCollection('mlmodels').updateOne({ _id: \"colours\" }" in files["mlmodel.js"]
    assert "modelInterfaces.ts" in files["checklist.md"]
    site.models = [document | {"version": "0", "categories": [c | {"color": "#123456"} for c in document["categories"]]}]
    register_model(package, plan, store, settings, only_files=True)
    checklist = (Path(told.folder) / "checklist.md").read_text()
    assert "only version and thresholds change" in checklist
    assert "modelInterfaces.ts" not in checklist
    assert "#123456" in (Path(told.folder) / "mlmodel.json").read_text()


def test_classes_that_animl_does_not_know_are_found_before_the_endpoint_answers_them(
    registered: tuple[AnimlSite, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    site.models = [{"_id": "colours", "version": "0", "defaultConfThreshold": 0.8, "expectsCrops": True, "categories": []}]
    with pytest.raises(ReleaseError, match=r"lacks the categories red, green, blue.*--only-files.*nothing was changed"):
        deploy_endpoint(package_of(store, tmp_path), plan, store, settings)
    site.models[0]["categories"] = [{"_id": c, "name": c, "color": "#000000"} for c in ("red", "green", "blue")]
    deploy_endpoint(package_of(store, tmp_path), plan, store, settings)


def test_rules_that_somebody_else_changed_or_may_not_be_changed_are_said(
    registered: tuple[AnimlSite, Plan, Settings], store: Store, tmp_path: Path
) -> None:
    site, plan, settings = registered
    package = package_of(store, tmp_path)
    deploy_endpoint(package, plan, store, settings)
    site.managers = False
    with pytest.raises(SettingsError, match="for rules: a manager"):
        register_model(package, plan, store, settings)
    assert site.rules == RULES
    site.managers, site.meddle = True, RULES[0] | {"_id": "r4"}
    with pytest.raises(ReleaseError, match="holds other automation rules of isle than were written; compare"):
        register_model(package, plan, store, settings)
    with pytest.raises(SettingsError, match="ANIML_STAGE"):
        register_model(package, plan, store, settings.model_copy(update={"stage": ""}))
    with pytest.raises(ReleaseError, match="says nothing of registering"):
        register_model(package, colour_plan(), store, settings)


def test_a_release_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, animl_pipeline.endpoint; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "torchvision", "timm", "lightning", "onnxruntime", "prefect", "boto3"}
