"""What is found before anything is touched: refusals, what is missing, what a dry run says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PackageError, ReleaseError, SettingsError
from animl_pipeline.core.records import Box, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.deploy import ask_endpoint, deploy_endpoint, endpoint_status, foresee_release, release_history, rollback_endpoint
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, Addresses
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace
from tests.conftest import jpeg
from tests.support.packaged_model import package_of, report_of
from tests.support.paths import ROOT
from tests.support.sagemaker_faults import denying, faulty


def test_what_is_missing_is_named(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)
    with pytest.raises(SettingsError, match="ANIML_ROLE_ARN"):
        deploy_endpoint(package, plan, store, settings.model_copy(update={"role_arn": ""}))
    with pytest.raises(SettingsError, match="ANIML_ENDPOINT_IMAGE"):
        deploy_endpoint(package, plan, store, settings.model_copy(update={"endpoint_image": ""}))
    with pytest.raises(ReleaseError, match="expected the bucket s3://no-such-bucket, found none; make it, or set ANIML_MODELS_BUCKET"):
        deploy_endpoint(package, plan, store, settings.model_copy(update={"models_bucket": "no-such-bucket"}))
    with pytest.raises(ReleaseError, match=f"expected the endpoint {plan.endpoint_name()} in SageMaker, found none"):
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


def test_a_package_without_metrics_is_not_released(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = package_of(store, tmp_path)

    def build(space: Workspace) -> StepOutput:
        card = store.path(package, "card.json").read_text()
        (space.out / "card.json").write_text(card[: card.index('"metrics"')] + '"metrics": {}}')
        return StepOutput(Counts(kept=0))

    with pytest.raises(PackageError, match="no metrics"):
        deploy_endpoint(store.make(Step("package", version=1), config={"metrics": False}, build=build), plan, store, settings)


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
    root = ROOT
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
