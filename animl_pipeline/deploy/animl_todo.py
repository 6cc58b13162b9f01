"""What is left for a person to do in Animl after a release, as a list to tick off."""

from __future__ import annotations

from typing import Any

from animl_pipeline.config import Plan
from animl_pipeline.core.records import Approval


def checklist(
    document: dict[str, Any],
    known: dict[str, Any] | None,
    plan: Plan,
    parameters: dict[str, str],
    rules: dict[str, bool],
    approval: Approval | None = None,
) -> str:
    """checklist.md: the steps in their order, longer where the class list has changed or the model is new to Animl.

    Args:
        document: the MLModel document to be written.
        known: the one that Animl has; None where it has none or could not be asked.
        plan: the plan.
        parameters: SSM parameter → endpoint.
        rules: project → whether its automation rules change.
        approval: who said yes to the release; None where nobody did.
    """
    model_id, version = document["_id"], document["version"]
    lines = [f"# Registering {model_id} {version} in Animl", "", _what_changes(document, known), ""]
    if approval is not None or plan.release.approval == "required":
        lines.append(f"- [x] {approval}" if approval else "- [ ] a person approves the release: `animl-pipeline release PLAN --approve-as NAME`")
    lines += [
        f"- [ ] SSM `{name}` holds `{value}` (create it before Animl's API is deployed; never delete one)" for name, value in parameters.items()
    ]
    if parameters and plan.release.switch == "ssm":
        lines.append("- [ ] Animl's running Lambda containers keep the old value until they start anew: redeploy the API, or wait")
    if known is not None and _ids(known) == _ids(document):
        lines.append(f"- [ ] run `mlmodel.js` with mongosh right after the release: from then on new labels are stored with version `{version}`")
    changed = {p for p, changes in rules.items() if changes}
    lines += [
        f"- [ ] automation rules of `{p}`: compare `automation-rules-{p}-before.json` with `automation-rules-{p}.json`" for p in sorted(changed)
    ]
    if known is None or _ids(known) != _ids(document):
        lines += _class_list(model_id, plan, known is None)
    lines += [
        "- [ ] ask Animl for one new picture of each class and look at the labels: model, version, confidence",
        f"- [ ] going back: `animl-pipeline rollback PLAN`, then the `mlmodel.js` of the version before (it lies in the store beside this one, "
        f"under `registrations/{plan.model}/`)",
    ]
    return "\n".join(lines) + "\n"


def released_card(card: str, approval: Approval | None) -> str:
    """The package's model card with who approved its release; the package itself, named by its content, cannot hold that."""
    said = f"It was {approval}." if approval else "Nobody's approval was asked for."
    return f"{card.rstrip()}\n\n## Release\n\n{said}\n"


def _what_changes(document: dict[str, Any], known: dict[str, Any] | None) -> str:
    if known is None:
        return "What Animl has now is not known (or it has no such model yet), so everything is listed."
    new, gone = sorted(_ids(document) - _ids(known)), sorted(_ids(known) - _ids(document))
    if not new and not gone:
        return f"Same model, same classes as version {known.get('version')}: only version and thresholds change."
    return f"The class list changes. New: {', '.join(new) or 'none'}. Gone: {', '.join(gone) or 'none'}."


def _class_list(model_id: str, plan: Plan, unknown: bool) -> list[str]:
    first = [
        f"- [ ] animl-api, `src/ml/modelInterfaces.ts`: `{model_id}` is in the map of models, with a function that asks its endpoints",
        "- [ ] animl-api, `src/config/config.ts`: both SSM parameters are in the list that is read at the start; deploy the API after they exist",
    ]
    return [
        *(first if unknown else []),
        "- [ ] run `mlmodel.js` with mongosh BEFORE the endpoint answers with new classes: an answer with an unknown category is retried and lost",
        "- [ ] old and new classes together in the document while both versions may answer; take the gone ones out afterwards",
        f"- [ ] each project that shall use it: `availableMLModels` holds `{model_id}`",
        "- [ ] each project: labels of the new classes' names exist, or Animl makes them with the document's colours",
        "- [ ] each project: automation rules with this model have a categoryConfig for the new classes (`category-config.json`; "
        "`release.register.rule_projects` writes them)",
        *(
            []
            if plan.release.register_ and plan.release.register_.rule_projects
            else ["- [ ] no project is named in `release.register.rule_projects`: by hand"]
        ),
    ]


def _ids(document: dict[str, Any]) -> set[str]:
    return {str(c["_id"]) for c in document.get("categories") or []}
