"""The dry run: what a release would change, beside what is there now, what it would cost, and what stands in its way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.records import Artifact, Record, Report
from animl_pipeline.deploy.animl_registration import category_config, merged_rules, ml_model, parameters
from animl_pipeline.deploy.aws_errors import found, spoken
from animl_pipeline.deploy.endpoint_names import Target, card_of, targets_of
from animl_pipeline.deploy.history import records_of
from animl_pipeline.deploy.preflight import Finding, asked_project, findings, model_id_of
from animl_pipeline.deploy.prices import cost
from animl_pipeline.deploy.release_gate import lacks_approval, refuse
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.integrations.animl import Animl
from animl_pipeline.storage.remote import RemoteError
from animl_pipeline.storage.step_cache import Store


class Line(Record):
    """One thing that a release sets: what it is now (None: not there) and what it would be."""

    what: str
    now: str | None
    then: str

    @property
    def changes(self) -> bool:
        """Whether a release would change it."""
        return self.now != self.then


class Part(Record):
    """What belongs together: an endpoint, or what Animl is told."""

    title: str
    lines: tuple[Line, ...]
    note: str = ""


class Outlook(Record):
    """A release that was not made: what it would change, what was looked at ahead, and why it would be refused ("" where not)."""

    parts: tuple[Part, ...]
    findings: tuple[Finding, ...]
    refused: str = ""

    @property
    def changes(self) -> int:
        """How many things would change."""
        return sum(line.changes for part in self.parts for line in part.lines)


def foresee_release(
    package: Artifact, plan: Plan, store: Store, settings: Settings, *, report: Report | None = None, force: str = "", approved: bool = False
) -> Outlook:
    """What :func:`deploy_endpoint` would do; nothing is changed.

    Raises:
        SettingsError, PackageError, ReleaseError: as there, where nothing can be said at all.
    """
    targets = targets_of(package, plan, store, settings)
    refused = ""
    try:
        refuse(package, targets[0].version, report, force, records_of(targets[0].where.line, store))
    except ReleaseError as e:
        refused = str(e)
    aws = Aws()
    parts = [_endpoint_part(aws, target) for target in targets]
    if plan.release.register_ is not None:
        parts += _animl_parts(aws, package, plan, store, settings)
    seen = [*findings(aws, targets, plan, settings)]
    if lacks_approval(package, plan, store) and not approved:
        seen.append(Finding(what="approval", state="warning", said="a person must approve it: --approve-as NAME here, or in Prefect's UI"))
    return Outlook(parts=tuple(parts), findings=tuple(seen), refused=refused)


def _endpoint_part(aws: Aws, target: Target) -> Part:
    state = aws.endpoint(target.endpoint)
    config = aws.config(state.endpoint_config) if state else None
    variant: Any = config["ProductionVariants"][0] if config else {}
    model: Any = _model(aws, variant.get("ModelName")) if config else {}
    tags = aws.tags(state.arn) if state and state.arn else {}
    lines = [
        Line(what="endpoint", now=target.endpoint if state else None, then=target.endpoint),
        Line(what="config", now=state.endpoint_config if state else None, then=target.endpoint_config),
        Line(what="model", now=variant.get("ModelName"), then=target.sagemaker_model),
        Line(what="package", now=model.get("ModelDataUrl"), then=target.model_url()),
        Line(what="image", now=model.get("Image"), then=target.image),
        Line(what="role", now=model.get("Role"), then=target.role_arn),
        Line(what="size", now=_size(variant) if variant else None, then=_size(target.variant())),
        *(Line(what=f"tag {k}", now=tags.get(k), then=v) for k, v in target.tags.items()),
    ]
    title = f"{target.where.purpose} endpoint {target.endpoint}" + (f" ({state.status})" if state else " (new)")
    return Part(title=title, lines=tuple(lines), note=cost(target.where))


def _model(aws: Aws, name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    with spoken(f"the SageMaker model {name}"):
        known = found(lambda: aws.sagemaker.describe_model(ModelName=name))
    if known is None:
        return {}
    container = known.get("PrimaryContainer", {})
    return {"ModelDataUrl": container.get("ModelDataUrl", ""), "Image": container.get("Image", ""), "Role": known.get("ExecutionRoleArn", "")}


def _size(variant: Any) -> str:
    serverless = variant.get("ServerlessConfig")
    if serverless:
        return f"serverless, {serverless['MemorySizeInMB']} MB, {serverless['MaxConcurrency']} at a time"
    return f"{variant.get('InitialInstanceCount')} x {variant.get('InstanceType')}"


def _animl_parts(aws: Aws, package: Artifact, plan: Plan, store: Store, settings: Settings) -> Iterator[Part]:
    card = card_of(package, store)
    if plan.release.register_ is not None and plan.release.register_.ssm:
        held = [Line(what=name, now=aws.parameter(name), then=value) for name, value in parameters(plan, card.version, settings).items()]
        late = "a new value acts on Animl's cold starts only" if any(line.changes and line.now for line in held) else ""
        yield Part(title="SSM parameters", lines=tuple(held), note=late)
    document, why = _known_document(plan, settings)
    new = ml_model(card, plan, document)
    lines = [Line(what=key, now=_shown(document.get(key)) if document else None, then=_shown(value)) for key, value in new.items()]
    yield Part(title=f"Animl's MLModel {new['_id']} (by mlmodel.js)", lines=tuple(lines), note=why)
    config = category_config(card, plan)
    for project in plan.release.register_.rule_projects if plan.release.register_ else ():
        yield _rules_part(project, plan, config, settings)
    if plan.release.register_ is not None and not plan.release.register_.rule_projects:
        wanted = tuple(Line(what=name, now=None, then=_shown(value)) for name, value in config.items())
        yield Part(title="categoryConfig of automation rules", lines=wanted, note="by hand: register.rule_projects names no project")


def _rules_part(project: str, plan: Plan, config: dict[str, dict[str, Any]], settings: Settings) -> Part:
    title = f"automation rules of {project}"
    try:
        with Animl(project, settings) as animl:
            before = animl.automation_rules()
    except (RemoteError, PipelineError) as e:
        return Part(title=title, lines=(), note=f"could not be read: {e}")
    after = merged_rules(before, model_id_of(plan), config)
    lines = [
        Line(what=str(new["name"]), now=_shown(old["action"].get("categoryConfig") or {}), then=_shown(new["action"].get("categoryConfig") or {}))
        for old, new in zip(before, after, strict=True)
    ]
    mine = any((rule.get("action") or {}).get("mlModel") == model_id_of(plan) for rule in after)
    return Part(title=title, lines=tuple(lines), note="" if mine else f"no rule runs {model_id_of(plan)} yet")


def _known_document(plan: Plan, settings: Settings) -> tuple[dict[str, Any] | None, str]:
    """Animl's document as it is, where Animl can be asked."""
    project = asked_project(plan)
    if project is None or not settings.api_url:
        return None, "what Animl has now is not known: that needs ANIML_API_URL and a project"
    try:
        with Animl(project, settings) as animl:
            return animl.ml_model(model_id_of(plan)), ""
    except (RemoteError, PipelineError) as e:
        return None, f"what Animl has now could not be asked: {e}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
