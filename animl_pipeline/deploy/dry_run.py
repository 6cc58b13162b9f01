"""The dry run of a release: each value now and after the release, the preflight checks, and what would stop it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import PipelineError, ReleaseError, RemoteError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.deploy.animl_registration import planned_rules, ssm_parameters
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.merge_automation_rules import without_entry_ids
from animl_pipeline.deploy.preflight import CheckResult, run_preflight
from animl_pipeline.deploy.release_gate_and_approval import check_report, needs_approval
from animl_pipeline.deploy.resource_names import ReleaseTarget, animl_model_id, read_package_card, release_targets
from animl_pipeline.storage.store import Store

PRICES = "prices: https://aws.amazon.com/sagemaker/ai/pricing/"


class Change(Record):
    """One value that a release sets: ``now`` (None if it does not exist) and ``then``, after the release."""

    name: str
    now: str | None
    then: str

    @property
    def differs(self) -> bool:
        """Whether the release would change the value."""
        return self.now != self.then


class Section(Record):
    """The changes of one endpoint, or of one thing in Animl."""

    title: str
    changes: tuple[Change, ...]
    note: str = ""


class DryRun(Record):
    """What a release would change, the results of the preflight checks, and why it would be refused ("" if it would not)."""

    sections: tuple[Section, ...]
    checks: tuple[CheckResult, ...]
    refused: str = ""

    @property
    def change_count(self) -> int:
        """How many values would change."""
        return sum(change.differs for section in self.sections for change in section.changes)


def dry_run_release(
    package: Artifact, plan: Plan, store: Store, settings: Settings, *, report: Report | None = None, force: str = "", approved: bool = False
) -> DryRun:
    """What :func:`deploy_package` would do. Nothing is changed.

    Raises:
        SettingsError, PackageError, ReleaseError: as there, if not even the names can be computed.
    """
    targets = release_targets(package, plan, store, settings)
    refused = ""
    try:
        check_report(package, targets[0].version, report, force, plan, store)
    except ReleaseError as e:
        refused = str(e)
    aws = AwsApi()
    sections = [_endpoint_section(aws, target) for target in targets]
    if plan.release.register_ is not None:
        sections += _animl_sections(aws, package, plan, store, settings)
    checks = [*run_preflight(aws, targets, plan, settings)]
    if needs_approval(package, plan, store) and not approved:
        message = "a person must approve it: --approve-as NAME here, or in Prefect's UI"
        if replayed := plan.release.replay.images:
            message += f"; before it asks, the flow runs the new model on the last {replayed:,} images that the model in service answered"
        checks.append(CheckResult(name="approval", state="warning", message=message))
    return DryRun(sections=tuple(sections), checks=tuple(checks), refused=refused)


def _endpoint_section(aws: AwsApi, target: ReleaseTarget) -> Section:
    state = aws.endpoint_state(target.endpoint)
    config = aws.config(state.endpoint_config) if state else None
    variant: Any = config["ProductionVariants"][0] if config else {}
    model: Any = (aws.model(variant["ModelName"]) if variant.get("ModelName") else None) or {}
    container = model.get("PrimaryContainer", {})
    tags = aws.tags(state.arn) if state and state.arn else {}
    changes = (
        Change(name="endpoint", now=target.endpoint if state else None, then=target.endpoint),
        Change(name="config", now=state.endpoint_config if state else None, then=target.endpoint_config),
        Change(name="model", now=variant.get("ModelName"), then=target.sagemaker_model),
        Change(name="package", now=container.get("ModelDataUrl"), then=target.model_url),
        Change(name="image", now=container.get("Image"), then=target.image),
        Change(name="role", now=model.get("ExecutionRoleArn"), then=target.role_arn),
        Change(name="size", now=_size(variant) if variant else None, then=_size(target.variant())),
        *(Change(name=f"tag {k}", now=tags.get(k), then=v) for k, v in target.tags.items()),
    )
    title = f"{target.planned.purpose} endpoint {target.endpoint}" + (f" ({state.status})" if state else " (new)")
    payment = "paid by the second of work" if target.planned.instance_type is None else "paid by the hour, whether it answers or not"
    return Section(title=title, changes=changes, note=f"{payment}; {PRICES}")


def _size(variant: Any) -> str:
    serverless = variant.get("ServerlessConfig")
    if serverless:
        return f"serverless, {serverless['MemorySizeInMB']} MB, {serverless['MaxConcurrency']} concurrent requests"
    return f"{variant.get('InitialInstanceCount')} x {variant.get('InstanceType')}"


def _animl_sections(aws: AwsApi, package: Artifact, plan: Plan, store: Store, settings: Settings) -> Iterator[Section]:
    """What the registration writes: SSM parameters and automation rules. A person writes the MLModel document."""
    register = plan.release.register_
    if register is None:
        return
    card = read_package_card(package, store)
    if register.ssm:
        changes = [Change(name=name, now=aws.parameter(name), then=value) for name, value in ssm_parameters(plan, card.version, settings).items()]
        late = any(change.differs and change.now for change in changes)
        yield Section(title="SSM parameters", changes=tuple(changes), note="Animl reads a new value only when its Lambdas restart" if late else "")
    for project in register.rule_projects:
        yield _rules_section(project, plan, card, store, settings)
    yield Section(title="Animl's MLModel document", changes=(), note="`release register PLAN --only-files` writes it, and what changes in Animl")


def _rules_section(project: str, plan: Plan, card: ModelCard, store: Store, settings: Settings) -> Section:
    title = f"automation rules of {project}"
    model_id = animl_model_id(plan)
    try:
        before, after, kept = planned_rules(project, plan, card, store, settings)
    except (RemoteError, PipelineError) as e:
        return Section(title=title, changes=(), note=f"could not be read: {e}")
    changes = [Change(name=str(new["name"]), now=_rule_config(old), then=_rule_config(new)) for old, new in zip(before, after, strict=True)]
    used = any((rule.get("action") or {}).get("mlModel") == model_id for rule in after)
    note = "; ".join(f"{line}: a person chose it" for line in kept) if used else f"no rule runs {model_id} yet"
    return Section(title=title, changes=tuple(changes), note=note)


def _rule_config(rule: dict[str, Any]) -> str:
    """A rule's thresholds and switches as one line of text."""
    return json.dumps((without_entry_ids(rule).get("action") or {}).get("categoryConfig") or {}, sort_keys=True, ensure_ascii=False)
