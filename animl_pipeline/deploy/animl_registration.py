"""Register a released model in Animl: MLModel document, thresholds, SSM parameters, automation rules, and a checklist.

SSM parameters and automation rules are written from here. Animl's API cannot write the MLModel document, so it comes as a
script for mongosh. Each label that Animl stores names the document's version, not the endpoint's.
"""

from __future__ import annotations

import colorsys
import json
import logging
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from animl_pipeline.config import Plan, RegisterConfig
from animl_pipeline.config.package_and_release import Purpose
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.animl_and_sagemaker_limits import MIN_THRESHOLD, NEVER
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ExportUnreachableError, LabelsError, ReleaseError, RemoteError, SettingsError
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.release_and_reference_types import Approval
from animl_pipeline.deploy.aws_api import AwsApi
from animl_pipeline.deploy.merge_automation_rules import Document, KnownEntries, Rule, RuleChange, merge_rules, same_rules
from animl_pipeline.deploy.release_gate_and_approval import approval_of
from animl_pipeline.deploy.resource_names import animl_model_id, animl_project, read_package_card, slug, ssm_parameter_name
from animl_pipeline.integrations.animl import AnimlClient
from animl_pipeline.steps.labels import class_taxa
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)


class Registration(Record):
    """What was written: files (with their folder in the store), SSM parameters, and the state of each project's automation rules.

    ``kept`` has a line for each threshold in a project's rules that a person chose and that stays.
    """

    folder: str
    files: tuple[str, ...]
    parameters: dict[str, str]
    rules: dict[str, str]
    kept: dict[str, tuple[str, ...]]


def register_model(package: Artifact, plan: Plan, store: Store, settings: Settings, *, only_files: bool = False) -> Registration:
    """Write the registration's files into the store; then the SSM parameters and automation rules that the plan names.

    ``store``: gets the folder ``registrations/<model>/<version>-<package>/``. ``only_files``: change nothing in AWS and Animl.

    Raises:
        ReleaseError: the plan has no section ``release.register`` (code "no_register"), an endpoint for SSM does not exist (code "no_endpoint"), or
            AWS or Animl refused.
        ExportUnreachableError: Animl does not answer.
        SettingsError: Animl's stage, address or user are missing.
    """
    register = _register_section(plan)
    card = read_package_card(package, store)
    folder = f"registrations/{plan.model}/{slug(card.version)}-{package.digest[:8]}"
    parameters = ssm_parameters(plan, card.version, settings) if register.ssm else {}
    document = _known_document(plan, settings)
    known = _known_entries(document, plan, store)
    rules = {project: _read_rules(project, plan, card, known, settings) for project in register.rule_projects}
    approval = approval_of(package, plan, store)
    files = _files(ml_model_document(card, plan, document, _taxa(plan, settings)), card, plan, document, parameters, rules, approval)
    files["MODEL_CARD.md"] = _card_with_approval(store.path(package, "MODEL_CARD.md").read_text(encoding="utf-8"), approval)
    unchanged = {name for project, change in rules.items() if not change.changed() for name in _rule_files(project)}
    for name, text in files.items():
        if name not in unchanged or store.object_store.read(f"{folder}/{name}") is None:  # the rules from before the first registration stay
            store.object_store.put(f"{folder}/{name}", text.encode())
    if not only_files:
        _write_parameters(AwsApi(), parameters)
        for project in rules:
            _write_rules(project, plan, card, known, settings)
    state = "not written" if only_files else "written"
    states = {project: state if change.changed() else "unchanged" for project, change in rules.items()}
    kept = {project: change.kept for project, change in rules.items() if change.kept}
    return Registration(folder=f"{store.object_store}/{folder}", files=tuple(files), parameters=parameters, rules=states, kept=kept)


def planned_rules(project: str, plan: Plan, card: ModelCard, store: Store, settings: Settings) -> RuleChange:
    """What a registration would change in a project's automation rules; nothing is written. Raises as :func:`register_model`."""
    return _read_rules(project, plan, card, _known_entries(_known_document(plan, settings), plan, store), settings)


def ssm_parameters(plan: Plan, version: str, settings: Settings) -> dict[str, str]:
    """SSM parameter → endpoint name. Both purposes get one, since Animl's API fails as a whole if one is missing."""
    endpoints = plan.release.endpoints(plan.model, slug(version))
    names = {e.purpose: e.endpoint for e in endpoints}
    purposes: tuple[Purpose, ...] = ("realtime", "batch")
    return {ssm_parameter_name(plan, purpose, settings): names.get(purpose, endpoints[0].endpoint) for purpose in purposes}


def ml_model_document(card: ModelCard, plan: Plan, known: Document | None = None, taxa: Mapping[str, str] = MappingProxyType({})) -> Document:
    """Animl's MLModel document. Colours, taxonomy and description of the present document (``known``) stay, unless the plan sets them.

    The plan's taxonomy table sets the taxonomy, too: ``taxa`` has it by class. What the plan writes for a class counts before it.
    """
    register = _register_section(plan)
    before = {c["_id"]: c for c in (known or {}).get("categories") or []}
    categories = []
    for i, c in enumerate(card.registered_classes()):
        colour = register.colours.get(c.id) or before.get(c.id, {}).get("color") or _colour(i, len(card.registered_classes()))
        taxonomy = register.taxonomy.get(c.id) or taxa.get(c.id) or before.get(c.id, {}).get("taxonomy")
        categories.append({"_id": c.id, "name": c.name, "color": colour} | ({"taxonomy": taxonomy} if taxonomy else {}))
    return {
        "_id": animl_model_id(plan),
        "version": card.version,
        "description": plan.description or (known or {}).get("description") or f"{plan.model}, trained by animl-pipeline",
        "defaultConfThreshold": max(register.conf_threshold, MIN_THRESHOLD),
        "categories": categories,
        "expectsCrops": True,
    }


def category_config(card: ModelCard, plan: Plan) -> dict[str, Document]:
    """Class name → confidence threshold and whether it is disabled, in the form of an automation rule. No threshold is 0; see MIN_THRESHOLD.

    A class for false boxes is always disabled, and so is one for other animals that the plan does not register.
    """
    register = _register_section(plan)
    thresholds = card.thresholds | register.thresholds
    return {
        c.name: {"confThreshold": max(thresholds.get(c.id, register.conf_threshold), MIN_THRESHOLD), "disabled": c.id in register.disabled}
        if c.id not in card.hidden_ids()
        else {"confThreshold": 1.0, "disabled": True}
        for c in card.registered_classes()
    }


def kept_by_animl(card: ModelCard, plan: Plan) -> dict[str, float]:
    """Class or parent → the probability from which Animl keeps its label, as the plan registers it; ``NEVER`` for a disabled class.

    Without a section ``release.register``, these are the card's thresholds. What a person chose in an automation rule is not known here.
    """
    register = plan.release.register_
    if register is None:
        return dict(card.thresholds)
    thresholds = card.thresholds | register.thresholds
    return {
        c: NEVER if c in register.disabled else max(thresholds.get(c, register.conf_threshold), MIN_THRESHOLD)
        for c in card.answered_ids()
        if c not in card.hidden_ids()
    }


def _register_section(plan: Plan) -> RegisterConfig:
    if plan.release.register_ is None:
        raise ReleaseError("the plan has no section release.register; add `release: {register: {}}` (see docs/release.md)", code="no_register")
    return plan.release.register_


# -- SSM parameters and automation rules ---------------------------------------------------------------------------------


def _write_parameters(aws: AwsApi, parameters: dict[str, str]) -> None:
    for endpoint in sorted(set(parameters.values())):
        if aws.endpoint_state(endpoint) is None:
            raise ReleaseError(
                f"expected the endpoint {endpoint}, which SSM shall name, found none; release first, or use --only-files", code="no_endpoint"
            )
    for name, value in parameters.items():
        aws.set_parameter(name, value)


def _known_entries(document: Document | None, plan: Plan, store: Store) -> KnownEntries:
    """What no person chose in the rules: default thresholds, and what earlier registrations of the model wrote."""
    folder = f"registrations/{plan.model}/"
    defaults = [d.get("defaultConfThreshold") for d in (document or {}, *_stored_json(folder, "mlmodel.json", store))]
    written = tuple(_stored_json(folder, "category-config.json", store))
    return KnownEntries(tuple(float(d) for d in defaults if d is not None), written)


def _stored_json(folder: str, file: str, store: Store) -> Iterator[Document]:
    """The content of one of the files of every registration in a folder of the store."""
    for name in store.object_store.names(folder):
        data = store.object_store.read(name) if name.endswith(f"/{file}") else None
        if data is not None:
            yield json.loads(data)


def _read_rules(project: str, plan: Plan, card: ModelCard, known: KnownEntries, settings: Settings) -> RuleChange:
    with _client(project, settings) as animl:
        try:
            before = animl.automation_rules()
        except RemoteError as e:
            kind = ExportUnreachableError if e.retryable else ReleaseError
            raise kind(f"the automation rules of {project} could not be read: {e}", code="rules_not_read") from e
    replace = _register_section(plan).existing_thresholds == "replace"
    return merge_rules(before, animl_model_id(plan), category_config(card, plan), known, replace=replace)


def _write_rules(project: str, plan: Plan, card: ModelCard, known: KnownEntries, settings: Settings) -> None:
    """Read the rules again, write them, and compare: a write replaces all rules, including changes that others make meanwhile."""
    change = _read_rules(project, plan, card, known, settings)
    for line in change.kept:
        log.warning("a threshold in the rules of %s was chosen by a person and stays: %s", project, line)
    if not change.changed():
        log.info("the automation rules of %s are up to date", project)
        return
    with _client(project, settings) as animl:
        try:
            held = animl.replace_automation_rules(change.after)
        except RemoteError as e:
            held = _read_after_failure(animl, project, e)
    if not same_rules(held, change.after):
        raise ReleaseError(
            f"Animl now has other automation rules of {project} than were written; compare them with automation-rules-{project}.json and "
            f"automation-rules-{project}-before.json of the registration",
            code="rules_differ",
        )
    log.info("wrote the automation rules of %s: %d of %d changed", project, change.changed(), len(change.after))


def _read_after_failure(animl: AnimlClient, project: str, failure: RemoteError) -> list[Rule]:
    """The rules in Animl after a write without an answer."""
    try:
        return animl.automation_rules()
    except RemoteError:
        raise ReleaseError(
            f"the automation rules of {project} may or may not have been written: {failure}; look at them in Animl", code="rules_unknown"
        ) from failure


def _client(project: str, settings: Settings) -> AnimlClient:
    if not settings.api_url:
        raise SettingsError("register.rule_projects needs Animl's API; set ANIML_API_URL (docs/animl.md)", code="no_api_url")
    return AnimlClient(project, settings)


# -- files ---------------------------------------------------------------------------------------------------------------


def _files(
    document: Document,
    card: ModelCard,
    plan: Plan,
    known: Document | None,
    parameters: dict[str, str],
    rules: dict[str, RuleChange],
    approval: Approval | None,
) -> dict[str, str]:
    """File name → text. ``document`` is the MLModel document to be, ``known`` Animl's present one."""
    files = {
        "mlmodel.json": _json(document),
        "mlmodel.js": _mongo_script(document),
        "category-config.json": _json(category_config(card, plan)),
        "ssm.json": _json(parameters),
    }
    for project, change in rules.items():
        files |= dict(zip(_rule_files(project), (_json(change.before), _json(change.after)), strict=True))
    files["checklist.md"] = _checklist(document, known, plan, parameters, rules, approval)
    return files


def _rule_files(project: str) -> tuple[str, str]:
    """The files with a project's rules before a registration and after it."""
    return f"automation-rules-{project}-before.json", f"automation-rules-{project}.json"


def _known_document(plan: Plan, settings: Settings) -> Document | None:
    """Animl's present MLModel document; None if there is none or Animl cannot be asked."""
    project = animl_project(plan)
    if project is None or not settings.api_url:
        return None
    try:
        with AnimlClient(project, settings) as animl:
            return animl.ml_model(animl_model_id(plan))
    except RemoteError as e:
        log.warning("Animl's MLModel could not be read: %s", e)
        return None


def _taxa(plan: Plan, settings: Settings) -> dict[str, str]:
    """Class → taxonomy by the plan's table. Without the table, the registration goes on."""
    try:
        return class_taxa(plan.labels, [s.name for s in plan.sources], settings)
    except LabelsError as e:
        log.warning("classes get no taxonomy from the plan's table: %s", e)
        return {}


def _mongo_script(document: Document) -> str:
    """A script for mongosh. It can be run twice."""
    values = {k: v for k, v in document.items() if k != "_id"}
    query, collection = f"{{ _id: {json.dumps(document['_id'])} }}", "db.getCollection('mlmodels')"
    return (
        f"// Animl's MLModel {document['_id']}: mongosh '<connection string of the database>' mlmodel.js\n"
        f"{collection}.updateOne({query}, {{ $set: {_json(values).rstrip()} }}, {{ upsert: true }});\n"
        f"printjson({collection}.findOne({query}));\n"
    )


def _card_with_approval(card: str, approval: Approval | None) -> str:
    """The model card with the person who approved the release. The package itself cannot name them: its name is made of its content."""
    return f"{card.rstrip()}\n\n## Release\n\n{f'It was {approval}.' if approval else 'No approval was needed.'}\n"


def _checklist(
    document: Document, known: Document | None, plan: Plan, parameters: dict[str, str], rules: dict[str, RuleChange], approval: Approval | None
) -> str:
    """checklist.md: what a person must still do in Animl. It is longer if the class list changes or the model is new to Animl."""
    model_id, version = document["_id"], document["version"]
    same_classes = known is not None and _class_ids(known) == _class_ids(document)
    lines = [f"# Registering {model_id} {version} in Animl", "", _summary(document, known), ""]
    if approval is not None or plan.release.approval == "required":
        lines.append(f"- [x] {approval}" if approval else "- [ ] a person approves the release: `animl-pipeline release PLAN --approve-as NAME`")
    lines += [
        f"- [ ] SSM `{name}` holds `{value}` (create it before Animl's API is deployed; never delete one)" for name, value in parameters.items()
    ]
    if parameters and plan.release.switch == "ssm":
        lines.append("- [ ] Animl's running Lambda containers keep the old value until they restart: redeploy the API, or wait")
    if same_classes:
        lines.append(f"- [ ] run `mlmodel.js` with mongosh right after the release: from then on new labels have the version `{version}`")
    lines += [
        f"- [ ] automation rules of `{p}`: compare `automation-rules-{p}-before.json` with `automation-rules-{p}.json`"
        for p, change in sorted(rules.items())
        if change.changed()
    ]
    lines += [
        f"- [ ] automation rules of `{p}`: is this threshold, which a person chose, still right? {line}" for p, c in rules.items() for line in c.kept
    ]
    if not same_classes:
        lines += _class_list_tasks(model_id, plan, new_model=known is None)
    lines += [
        "- [ ] send Animl one new image of each class and look at the labels: model, version, confidence",
        "- [ ] to roll back: `animl-pipeline rollback PLAN`, then run the `mlmodel.js` of the version before (in the store beside this one, "
        f"under `registrations/{plan.model}/`)",
    ]
    return "\n".join(lines) + "\n"


def _summary(document: Document, known: Document | None) -> str:
    if known is None:
        return "Animl's present document is not known (or Animl has no such model yet), so everything is listed."
    new, gone = sorted(_class_ids(document) - _class_ids(known)), sorted(_class_ids(known) - _class_ids(document))
    if not new and not gone:
        return f"Same model, same classes as version {known.get('version')}: only version and thresholds change."
    return f"The class list changes. New: {', '.join(new) or 'none'}. Removed: {', '.join(gone) or 'none'}."


def _class_list_tasks(model_id: str, plan: Plan, *, new_model: bool) -> list[str]:
    first = [
        f"- [ ] animl-api, `src/ml/modelInterfaces.ts`: add `{model_id}` to the map of models, with a function that calls its endpoints",
        "- [ ] animl-api, `src/config/config.ts`: add both SSM parameters to the list that is read at the start; deploy the API after they exist",
    ]
    register = plan.release.register_
    return [
        *(first if new_model else []),
        "- [ ] run `mlmodel.js` with mongosh BEFORE the endpoint answers with new classes: Animl loses an answer with an unknown one",
        "- [ ] keep old and new classes in the document while both versions may answer; remove the old ones afterwards",
        f"- [ ] each project that shall use the model: `availableMLModels` contains `{model_id}`",
        "- [ ] each project: labels with the new classes' names exist, or Animl creates them with the document's colours",
        "- [ ] each project: automation rules with this model have a categoryConfig for the new classes (`category-config.json`; "
        "`release.register.rule_projects` writes them)",
        *([] if register and register.rule_projects else ["- [ ] `release.register.rule_projects` names no project: change the rules yourself"]),
    ]


def _class_ids(document: Document) -> set[str]:
    return {str(c["_id"]) for c in document.get("categories") or []}


def _colour(i: int, n: int) -> str:
    """The i-th of n evenly spaced hues, as #RRGGBB."""
    r, g, b = colorsys.hls_to_rgb(i / n, 0.5, 0.65)
    return f"#{round(255 * r):02X}{round(255 * g):02X}{round(255 * b):02X}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
