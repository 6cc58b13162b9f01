"""Refusals and preflight checks before anything changes, and the dry run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.errors import AwsUnreachableError, PackageError, ReleaseError, SettingsError
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.deploy import deploy_package, dry_run_release, invoke_endpoint, realtime_status, release_records, roll_back
from animl_pipeline.dev.sagemaker_local import IMAGE, ROLE, Addresses
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.conftest import jpeg
from tests.support.packaged_model import compared_with, make_package, make_report
from tests.support.paths import ROOT
from tests.support.sagemaker_faults import access_denied_server, with_faults


def test_missing_settings_buckets_and_endpoints_are_reported(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    with pytest.raises(SettingsError) as no_settings:
        deploy_package(package, plan, store, settings.model_copy(update={"role_arn": "", "endpoint_image": ""}))
    assert no_settings.value.details["missing"] == ["ANIML_ROLE_ARN", "ANIML_ENDPOINT_IMAGE"]
    with pytest.raises(ReleaseError) as no_bucket:
        deploy_package(package, plan, store, settings.model_copy(update={"models_bucket": "no-such-bucket"}))
    assert no_bucket.value.details["failed"] == ["bucket"]
    with pytest.raises(ReleaseError) as nothing_deployed:
        roll_back(plan, store, settings)
    assert nothing_deployed.value.code == "no_endpoint"
    with pytest.raises(ReleaseError) as nothing_to_invoke:
        invoke_endpoint(plan.endpoint_name(), jpeg(), Box.of([0, 0, 1, 1]))
    assert nothing_to_invoke.value.code == "aws_refused"
    assert release_records(plan, store) == ()


def test_an_unreachable_service_is_a_retryable_error_of_one_line(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(AwsUnreachableError) as caught:
        deploy_package(make_package(store, tmp_path), plan, store, settings)
    assert caught.value.retryable
    assert "\n" not in str(caught.value)


def test_a_package_without_metrics_is_not_released(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)

    def build(space: Workspace) -> StepOutput:
        card = store.path(package, "card.json").read_text()
        (space.out / "card.json").write_text(card[: card.index('"metrics"')] + '"metrics": {}}')
        return StepOutput(Counts(kept=0))

    with pytest.raises(PackageError):
        deploy_package(store.make(Step("package", version=1), config={"metrics": False}, build=build), plan, store, settings)


def test_a_verdict_against_the_release_stops_it_unless_a_reason_is_given(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    hold = make_report(package, store, verdict="hold", reasons=("red lost 12 % recall",))
    other = make_package(store, tmp_path, "2", temperature=3.0)
    reports = {"verdict": hold, "other_package": make_report(other, store, verdict="promote")}
    for code, report in reports.items():
        with pytest.raises(ReleaseError) as caught:
            deploy_package(package, plan, store, settings, report=report)
        assert caught.value.code == code
    with pytest.raises(ReleaseError) as needs_data:
        deploy_package(package, plan, store, settings, report=make_report(package, store, verdict="need_more_data"))
    assert needs_data.value.details["verdict"] == "need_more_data"
    assert realtime_status(plan, store, settings).status == "absent"
    deploy_package(package, plan, store, settings, report=hold, force="fox alarms are needed now")
    assert release_records(plan, store)[-1].forced == "fox alarms are needed now"
    deploy_package(other, plan, store, settings, report=compared_with(make_report(other, store, verdict="promote"), package), force="not needed")
    assert release_records(plan, store)[-1].forced == ""


def test_a_report_that_compared_with_another_model_than_the_released_one_stops_the_release(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    first, second, third = (make_package(store, tmp_path, str(i), temperature=1.0 + i) for i in range(3))
    deploy_package(first, plan, store, settings, report=make_report(first, store, verdict="promote"))
    stale = make_report(third, store, verdict="promote")  # "first model", as it was before the release
    renamed = plan.model_copy(update={"release": plan.release.model_copy(update={"max_concurrency": 3})})
    for of_plan, report in ((plan, stale), (renamed, stale), (plan, compared_with(stale, second))):
        with pytest.raises(ReleaseError) as caught:
            deploy_package(third, of_plan, store, settings, report=report)
        assert caught.value.code == "other_champion"
        assert dry_run_release(third, of_plan, store, settings, report=report).refused
    deploy_package(third, plan, store, settings, report=compared_with(stale, first))
    deploy_package(third, plan, store, settings, report=compared_with(stale, first))  # it is served now, and this is still its report
    (*_, last) = store.object_store.names(f"releases/{plan.endpoint_name()}/")
    store.object_store.put(last, b"")
    with pytest.raises(ReleaseError) as caught:
        deploy_package(second, plan, store, settings, report=compared_with(make_report(second, store, verdict="promote"), first))
    assert caught.value.code == "unknown_champion"
    deploy_package(second, plan, store, settings, report=make_report(second, store, verdict="promote"), force="the record is lost")
    assert release_records(plan, store)[-1].forced == "the record is lost"


PROBLEMS: dict[str, tuple[dict[str, Any], dict[str, float], str]] = {
    "the role is not an ARN": ({"role_arn": "sagemaker"}, {}, "role"),
    "the role is of another account": ({"role_arn": "arn:aws:iam::999999999999:role/local"}, {}, "role"),
    "the role does not exist": ({"role_arn": ROLE.replace("local", "nobody")}, {}, "role"),
    "the role does not trust SageMaker": ({"role_arn": ROLE.replace("local", "lambda-only")}, {}, "role"),
    "the image is not in ECR": ({"endpoint_image": IMAGE.replace(":local", ":none")}, {}, "image"),
    "the quota is too small": ({}, {"quota_concurrency": 10}, "quota"),
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_the_preflight_finds_problems_before_anything_changes(
    what: str, cloud: Addresses, plan: Plan, store: Store, settings: Settings, tmp_path: Path
) -> None:
    values, faults, check = PROBLEMS[what]
    iam = boto3.client("iam")
    if "lambda-only" in str(values) and not [r for r in iam.list_roles()["Roles"] if r["RoleName"] == "lambda-only"]:
        trust = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}],
        }
        iam.create_role(RoleName="lambda-only", AssumeRolePolicyDocument=json.dumps(trust))
    with with_faults(cloud, **faults), pytest.raises(ReleaseError) as caught:
        deploy_package(make_package(store, tmp_path), plan, store, settings.model_copy(update=values))
    assert (caught.value.code, caught.value.details["failed"]) == ("preflight", [check])
    assert release_records(plan, store) == ()


def test_a_missing_permission_to_look_is_only_a_warning(
    plan: Plan, store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with access_denied_server() as address, caplog.at_level("WARNING"):
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", address)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", address)
        deploy_package(make_package(store, tmp_path), plan, store, settings)
    assert "lacks ecr:DescribeImages" in caplog.text
    assert "lacks servicequotas:ListServiceQuotas" in caplog.text


def test_the_documented_policy_allows_every_sagemaker_call_of_the_code() -> None:
    root = ROOT
    policy = json.loads(re.findall(r"```json\n(.*?)```", (root / "docs" / "release.md").read_text(), re.DOTALL)[0])
    allowed = {a for s in policy["Statement"] for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])}
    code = "".join(p.read_text() for p in (root / "animl_pipeline" / "deploy").glob("*.py"))
    operations = boto3.client("sagemaker").meta.method_to_api_mapping
    called = set(re.findall(r"sagemaker\.(\w+)\(", code)) | set(re.findall(r'sagemaker\.get_paginator\("(\w+)"\)', code))
    wanted = {f"sagemaker:{operations[name]}" for name in called if name in operations}
    assert len(wanted) >= 14
    assert wanted - allowed == set()


def test_a_dry_run_shows_what_would_change_and_changes_nothing(plan: Plan, store: Store, settings: Settings, tmp_path: Path) -> None:
    package = make_package(store, tmp_path)
    before = dry_run_release(package, plan, store, settings)
    assert [c.state for c in before.checks] == ["ok"] * 4
    assert all(change.now is None for change in before.sections[0].changes)
    assert "https://aws.amazon.com/sagemaker/ai/pricing/" in before.sections[0].note
    assert realtime_status(plan, store, settings).status == "absent"
    deploy_package(package, plan, store, settings)
    assert dry_run_release(package, plan, store, settings).change_count == 0
    larger = plan.model_copy(update={"release": plan.release.model_copy(update={"memory_mb": 2048})})
    changed = {c.name: (c.now, c.then) for c in dry_run_release(package, larger, store, settings).sections[0].changes if c.differs}
    assert changed.keys() == {"config", "size"}
    assert changed["size"] == ("serverless, 6144 MB, 20 concurrent requests", "serverless, 2048 MB, 20 concurrent requests")
    hold = dry_run_release(package, plan, store, settings, report=make_report(package, store, verdict="hold"))
    assert "'hold'" in hold.refused
