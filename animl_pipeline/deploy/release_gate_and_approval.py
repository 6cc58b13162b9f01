"""Checks before a release: the report's verdict, the model that it was compared with, and a person's approval."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

from animl_pipeline.config import Plan
from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.release_and_reference_types import Approval
from animl_pipeline.deploy.release_history import release_records
from animl_pipeline.deploy.released_model import find_champion_for_step
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

VERDICT_TEXTS = {"hold": "hold", "need_more_data": "need more data"}
MAX_NAME, MAX_NOTE = 200, 2000
"""Characters of an approval's name and note (core.release_results.Approval); Prefect's form has the same limits."""


def hold_reason(report: Report, force: str = "") -> str:
    """Why the verdict forbids a release, in one line that says what to do; "" if it does not, or if ``force`` gives a reason."""
    verdict = report.verdict or report.metrics.verdict
    if verdict is None or verdict == "promote" or force.strip():
        return ""
    reasons = "; ".join(report.reasons or report.metrics.reasons) or report.headline
    return (
        f"the verdict on {report.version} is {VERDICT_TEXTS[verdict]!r}: {reasons}; retrain as the report advises, or release anyway with "
        '--force "reason", which the history keeps'
    )


def check_report(package: Artifact, version: str, report: Report | None, force: str, plan: Plan, store: Store) -> str:
    """Check that the report allows the release; the reason for a forced release comes back, "" if force was not needed.

    Raises:
        ReleaseError: the report is about another package (code "other_package"); or ``force`` is empty and the report's verdict is not to promote
            (code "verdict"), it is not certain which model is released now (code "unknown_champion"), or the report compares the model with another
            one (code "other_champion").
    """
    force = " ".join(force.split())
    if report is None:
        return force
    if report.package.digest != package.digest or report.version != version:
        raise ReleaseError(
            f"the report is about the package {report.package.digest[:12]} ({report.version}), but this is {package.digest[:12]} ({version}); "
            "run `animl-pipeline retrain PLAN` again, so that the evaluated model is the one that is released",
            code="other_package",
        )
    verdict = report.verdict or report.metrics.verdict
    if verdict is None:
        if any(r.state == "done" for r in release_records(plan, store)):
            log.warning("the report has no verdict: %s was not compared with the released model", version)
        return ""
    if verdict == "promote":
        return _check_champion(package, version, report, force, plan, store)
    held = hold_reason(report, force)
    if held:
        raise ReleaseError(held, code="verdict", verdict=verdict)
    log.warning("the verdict on %s is %r; it is released anyway: %s", version, VERDICT_TEXTS[verdict], force)
    return force


def _check_champion(package: Artifact, version: str, report: Report, force: str, plan: Plan, store: Store) -> str:
    """Check that the report compared the model with the one that is released now; the reason for a forced release comes back."""
    champion = find_champion_for_step(plan, package, store)
    compared = report.metrics.comparison.package if report.metrics.comparison else None
    released = champion.package.digest if champion.package else None
    if not champion.problem and released == compared:
        return ""
    found = champion.problem or (
        f"it was compared with {f'the package {compared[:12]}' if compared else 'no released model'}, but now "
        f"{f'the package {released[:12]}' if released else 'none'} is released"
    )
    if not force:
        raise ReleaseError(
            f"the verdict on {version} is to promote, but {found}; run `animl-pipeline retrain PLAN` again, which compares it with the released "
            'model, or release anyway with --force "reason", which the history keeps',
            code="unknown_champion" if champion.problem else "other_champion",
        )
    log.warning("%s is released although %s: %s", version, found, force)
    return force


def new_approval(name: str, note: str, given_in: Literal["prefect", "command line"]) -> Approval:
    """A person's approval, dated now.

    Raises:
        ReleaseError: the name is empty, or name or note is too long.
    """
    by, note = " ".join(name.split()), note.strip()
    if not 0 < len(by) <= MAX_NAME:
        raise ReleaseError(f"expected the name of the person who approves, at most {MAX_NAME} characters, found {len(by) or 'none'}", code="bad_name")
    if len(note) > MAX_NOTE:
        raise ReleaseError(f"expected a note of at most {MAX_NOTE:,} characters, found {len(note):,}", code="bad_note")
    return Approval(by=by, note=note, at=datetime.now(UTC).isoformat(timespec="seconds"), given_in=given_in)


def require_approval(package: Artifact, plan: Plan, store: Store, approval: Approval | None) -> Approval | None:
    """The approval for this release; None if the plan needs none and there is none.

    Raises:
        ReleaseError: the plan requires an approval and there is none (code "not_approved").
    """
    known = approval or _approval_of_last_release(package, plan, store)
    if known is None and plan.release.approval == "required":
        raise ReleaseError(
            f"the plan of {plan.model} says release.approval: required, and no person has approved {package.digest[:12]}; read its report, then run "
            "`animl-pipeline release PLAN --approve-as NAME`, or start release/PLAN on the Prefect server, which asks in its UI",
            code="not_approved",
        )
    return known


def needs_approval(package: Artifact, plan: Plan, store: Store) -> bool:
    """Whether a person must still approve the package before its release."""
    return plan.release.approval == "required" and _approval_of_last_release(package, plan, store) is None


def approval_of(package: Artifact, plan: Plan, store: Store) -> Approval | None:
    """The approval of the package's latest release, None if there is none."""
    approvals = [r.approval for r in release_records(plan, store) if r.kind == "release" and r.package and r.package.digest == package.digest]
    return approvals[-1] if approvals else None


def _approval_of_last_release(package: Artifact, plan: Plan, store: Store) -> Approval | None:
    """The approval of the last release, if it was of this package: a repeated or continued release needs no new approval."""
    records = [r for r in release_records(plan, store) if r.state != "rolled_back"]
    if not records or records[-1].package is None or records[-1].package.digest != package.digest:
        return None
    return records[-1].approval
