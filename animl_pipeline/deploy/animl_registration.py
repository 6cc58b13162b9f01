"""What Animl must be told of a released model, as files that a person can look at, and as the changes that can be made from here.

SSM parameters are written, automation rules are read, merged and written back; the MLModel document has no door in Animl's
API, so it comes as a script for mongosh. Each label that Animl keeps names the document's version, not the endpoint's.
"""

from __future__ import annotations

import colorsys
import json
import logging
from typing import Any

from animl_pipeline.config import Plan, RegisterConfig
from animl_pipeline.config.release import Purpose
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.errors import PipelineError, ReleaseError
from animl_pipeline.core.records import Approval, Artifact, ModelCard, Record
from animl_pipeline.deploy.animl_todo import checklist, released_card
from animl_pipeline.deploy.endpoint_names import card_of, parameter_of, slug
from animl_pipeline.deploy.preflight import asked_project, model_id_of
from animl_pipeline.deploy.release_gate import approval_of
from animl_pipeline.deploy.sagemaker_api import Aws
from animl_pipeline.integrations.animl import Animl
from animl_pipeline.storage.remote import RemoteError
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)


Document = dict[str, Any]


class Registration(Record):
    """What was written where: the files' folder in the store, SSM's parameters, and projects whose rules changed."""

    folder: str
    files: tuple[str, ...]
    parameters: dict[str, str]
    rules: dict[str, str]


def register_model(package: Artifact, plan: Plan, store: Store, settings: Settings, *, only_files: bool = False) -> Registration:
    """Write the registration's files into the store; then SSM's parameters and automation rules, where the plan asks for them.

    Args:
        package: what is behind the endpoint.
        plan: its ``release.register`` says what Animl is told.
        store: gets ``registrations/<model>/<version>/``.
        settings: Animl's stage and API.
        only_files: change nothing in AWS and Animl.

    Raises:
        ReleaseError: the plan says nothing of registering, an endpoint that SSM shall name is not there, or AWS or Animl refused.
        SettingsError: stage, address or user are missing.
    """
    spec = _spec(plan)
    card = card_of(package, store)
    folder = f"registrations/{plan.model}/{slug(card.version)}-{package.digest[:8]}"
    wanted = parameters(plan, card.version, settings) if spec.ssm else {}
    rules = {project: _rules_now(project, plan, card, settings) for project in spec.rule_projects}
    approval = approval_of(package, plan, store)
    files = _files(card, plan, settings, wanted, rules, approval)
    files["MODEL_CARD.md"] = released_card(store.path(package, "MODEL_CARD.md").read_text(encoding="utf-8"), approval)
    for name, text in files.items():
        store.object_store.put(f"{folder}/{name}", text.encode())
    if not only_files:
        _write_parameters(Aws(), wanted)
        for project in rules:
            _write_rules(project, plan, card, settings)
    told = {project: ("as it was" if before == after else "to be written" if only_files else "written") for project, (before, after) in rules.items()}
    return Registration(folder=f"{store.object_store}/{folder}", files=tuple(files), parameters=wanted, rules=told)


def parameters(plan: Plan, version: str, settings: Settings) -> dict[str, str]:
    """SSM parameter → the endpoint's name. Both purposes have one, since a missing one breaks Animl's API as a whole."""
    endpoints = plan.release.endpoints(plan.model, slug(version))
    name_of = {e.purpose: e.endpoint for e in endpoints}
    purposes: tuple[Purpose, ...] = ("realtime", "batch")
    return {parameter_of(plan, purpose, settings): name_of.get(purpose, endpoints[0].endpoint) for purpose in purposes}


def ml_model(card: ModelCard, plan: Plan, known: Document | None = None) -> Document:
    """The MLModel document; colours, taxonomy and description that Animl knows already stay where the plan does not say otherwise."""
    spec = _spec(plan)
    before = {c["_id"]: c for c in (known or {}).get("categories") or []}
    categories = []
    for i, c in enumerate(card.classes):
        colour = spec.colours.get(c.id) or before.get(c.id, {}).get("color") or _colour(i, len(card.classes))
        category = {"_id": c.id, "name": c.name, "color": colour}
        taxonomy = spec.taxonomy.get(c.id) or before.get(c.id, {}).get("taxonomy")
        categories.append(category | ({"taxonomy": taxonomy} if taxonomy else {}))
    return {
        "_id": model_id_of(plan),
        "version": card.version,
        "description": plan.description or (known or {}).get("description") or f"{plan.model}, trained by animl-pipeline",
        "defaultConfThreshold": spec.conf_threshold,
        "categories": categories,
        "expectsCrops": True,
    }


def category_config(card: ModelCard, plan: Plan) -> dict[str, Document]:
    """Category name → threshold and whether it is left out, as an automation rule holds it."""
    spec = _spec(plan)
    return {
        c.name: {"confThreshold": spec.thresholds.get(c.id, card.thresholds.get(c.id, spec.conf_threshold)), "disabled": c.id in spec.disabled}
        for c in card.classes
    }


def _spec(plan: Plan) -> RegisterConfig:
    if plan.release.register_ is None:
        raise ReleaseError("the plan says nothing of registering; give it `release: {register: {}}` (docs/release.md says what it may hold)")
    return plan.release.register_


def _files(
    card: ModelCard,
    plan: Plan,
    settings: Settings,
    wanted: dict[str, str],
    rules: dict[str, tuple[list[Document], list[Document]]],
    approval: Approval | None,
) -> dict[str, str]:
    known = _document_now(plan, settings)
    document = ml_model(card, plan, known)
    files = {
        "mlmodel.json": _json(document),
        "mlmodel.js": _mongo(document),
        "category-config.json": _json(category_config(card, plan)),
        "ssm.json": _json(wanted),
    }
    for project, (before, after) in rules.items():
        files |= {f"automation-rules-{project}-before.json": _json(before), f"automation-rules-{project}.json": _json(after)}
    files["checklist.md"] = checklist(document, known, plan, wanted, {p: before != after for p, (before, after) in rules.items()}, approval)
    return files


def _document_now(plan: Plan, settings: Settings) -> Document | None:
    project = asked_project(plan)
    if project is None or not settings.api_url:
        return None
    try:
        with Animl(project, settings) as animl:
            return animl.ml_model(model_id_of(plan))
    except RemoteError as e:
        log.warning("Animl's MLModel could not be asked for: %s", e)
        return None


def _mongo(document: Document) -> str:
    """A script for mongosh that can be run twice."""
    values = {k: v for k, v in document.items() if k != "_id"}
    which, collection = f"{{ _id: {json.dumps(document['_id'])} }}", "db.getCollection('mlmodels')"
    return (
        f"// Animl's MLModel {document['_id']}: mongosh '<connection string of the database>' mlmodel.js\n"
        f"{collection}.updateOne({which}, {{ $set: {_json(values).rstrip()} }}, {{ upsert: true }});\n"
        f"printjson({collection}.findOne({which}));\n"
    )


def _write_parameters(aws: Aws, wanted: dict[str, str]) -> None:
    for value in sorted(set(wanted.values())):
        if aws.endpoint(value) is None:
            raise ReleaseError(f"SSM shall name the endpoint {value}, and there is none; release first, or leave it at --only-files")
    for name, value in wanted.items():
        aws.set_parameter(name, value)


def _rules_now(project: str, plan: Plan, card: ModelCard, settings: Settings) -> tuple[list[Document], list[Document]]:
    with _asked(project, settings) as animl:
        try:
            before = animl.automation_rules()
        except RemoteError as e:
            raise ReleaseError(f"the automation rules of {project} could not be read: {e}") from e
    return before, merged_rules(before, model_id_of(plan), category_config(card, plan))


def _write_rules(project: str, plan: Plan, card: ModelCard, settings: Settings) -> None:
    """Read again right before writing, and look afterwards: writing replaces all rules, whoever changed them meanwhile."""
    before, after = _rules_now(project, plan, card, settings)
    if before == after:
        log.info("the automation rules of %s are as they shall be", project)
        return
    with _asked(project, settings) as animl:
        try:
            held = animl.replace_automation_rules(after)
        except RemoteError as e:
            held = _held_after(animl, project, e)
    if held != after:
        raise ReleaseError(
            f"Animl holds other automation rules of {project} than were written; compare them with automation-rules-{project}.json and "
            f"automation-rules-{project}-before.json of the registration"
        )
    log.info("wrote the automation rules of %s: %d of %d changed", project, sum(a != b for a, b in zip(after, before, strict=True)), len(after))


def _held_after(animl: Animl, project: str, fault: RemoteError) -> list[Document]:
    """What Animl holds after a write whose answer did not come."""
    try:
        return animl.automation_rules()
    except RemoteError:
        raise ReleaseError(f"the automation rules of {project} may or may not have been written: {fault}; look at them in Animl") from fault


def _asked(project: str, settings: Settings) -> Animl:
    if not settings.api_url:
        raise PipelineError("register.rule_projects needs Animl's API: set ANIML_API_URL (docs/animl.md)")
    return Animl(project, settings)


def _colour(i: int, n: int) -> str:
    """Hues around the circle, the same for the same place in the list."""
    r, g, b = colorsys.hls_to_rgb(i / n, 0.5, 0.65)
    return f"#{round(255 * r):02X}{round(255 * g):02X}{round(255 * b):02X}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


Rule = dict[str, Any]


def merged_rules(rules: list[Rule], model_id: str, config: dict[str, dict[str, Any]]) -> list[Rule]:
    """All of a project's rules, those that run ``model_id`` with thresholds for exactly the classes of ``config``.

    A class that a rule knows already keeps the rule's own threshold and switch: a person chose them for this project.
    """
    return [_merged(rule, config) if _runs(rule, model_id) else rule for rule in rules]


def _runs(rule: Rule, model_id: str) -> bool:
    action = rule.get("action") or {}
    return action.get("type") == "run-inference" and action.get("mlModel") == model_id


def _merged(rule: Rule, config: dict[str, dict[str, Any]]) -> Rule:
    own = rule["action"].get("categoryConfig") or {}
    return rule | {"action": rule["action"] | {"categoryConfig": {name: own.get(name, value) for name, value in config.items()}}}
