"""The last door against a real local SageMaker: release, update, a bad package rolled back, a killed release found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from animl_pipeline.endpoint import ReleaseRecord, ask_endpoint, deploy_endpoint, endpoint_status, release_history, rollback_endpoint
from animl_pipeline.endpoint.names import target_of
from animl_pipeline.errors import PackageError, ReleaseError, SettingsError
from animl_pipeline.plan import Plan
from animl_pipeline.records import Answer, Artifact, Box, Counts, Release
from animl_pipeline.sagemaker_local import local_sagemaker
from animl_pipeline.settings import Settings
from animl_pipeline.store import Made, Store, Workspace, open_store
from tests.conftest import jpeg
from tests.packaged import colour_plan, package_of

BUCKET = "animl-model-zoo"
WHERE: dict[str, Any] = {"role_arn": "arn:aws:iam::123456789012:role/animl-endpoint-local", "endpoint_image": "animl-endpoint:local"}


@pytest.fixture(scope="module", autouse=True)
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local SageMaker and S3 which boto3 finds through its usual variables."""
    with local_sagemaker(tmp_path_factory.mktemp("cloud") / "state") as addresses, pytest.MonkeyPatch.context() as patch:
        for name, value in addresses.variables().items():
            patch.setenv(name, value)
        boto3.setup_default_session()  # an earlier test's session remembers credentials
        boto3.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        yield


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
    assert again == first.model_copy(update={"changed": False})
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
    some, more = (target_of(package, colour_plan(max_concurrency=n), store, settings) for n in (20, 80))
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
    """A release in a process of its own, killed as soon as the endpoint is under way."""
    variables = os.environ | {"ANIML_STORE": settings.store, "ANIML_ROLE_ARN": settings.role_arn, "ANIML_ENDPOINT_IMAGE": settings.endpoint_image}
    with subprocess.Popen([sys.executable, "-c", DEPLOY, package.model_dump_json(), plan.model_dump_json(by_alias=True)], env=variables) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and endpoint_status(plan, store, settings).status not in {"Creating", "Updating"}:
            time.sleep(0.01)
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


def test_a_release_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import sys, animl_pipeline.endpoint; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "torchvision", "timm", "lightning", "onnxruntime", "prefect", "boto3"}
