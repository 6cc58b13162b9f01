"""Where a release is refused before anything is touched."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

from animl_pipeline.config import Plan
from animl_pipeline.core.errors import ReleaseError
from animl_pipeline.core.records import Approval, Artifact, Report
from animl_pipeline.deploy.history import ReleaseRecord, release_history
from animl_pipeline.storage.step_cache import Store

log = logging.getLogger(__name__)


WORDS = {"hold": "to hold it back", "need_more_data": "that it needs more data"}


def held_back(report: Report, force: str = "") -> str:
    """Why the gate holds a package back, in a line that says what to do; "" where it does not, or somebody said why to release anyway."""
    verdict = report.verdict or report.metrics.verdict
    if verdict is None or verdict == "promote" or force.strip():
        return ""
    reasons = "; ".join(report.reasons or report.metrics.reasons) or report.headline
    return (
        f"the report's verdict on {report.version} is {WORDS[verdict]}: {reasons}; retrain with what it asks for, or say why it shall be "
        'released all the same with --force "reason", which the history keeps'
    )


def refuse(package: Artifact, version: str, report: Report | None, force: str, history: tuple[ReleaseRecord, ...]) -> str:
    """Why it is forced, "" when it need not be.

    Raises:
        ReleaseError: the report is of another package, or its verdict is not to promote and nobody said why to release anyway.
    """
    if report is None:
        return " ".join(force.split())
    if report.package.digest != package.digest or report.version != version:
        raise ReleaseError(
            f"the report is of the package {report.package.digest[:12]} ({report.version}), this is {package.digest[:12]} ({version}); "
            "run `animl-pipeline retrain PLAN` again, so that what was judged is what is released"
        )
    verdict = report.verdict or report.metrics.verdict
    if verdict is None or verdict == "promote":
        if verdict is None and any(r.state == "done" for r in history):
            log.warning("the report holds no verdict: %s was not compared with what is released now", version)
        return ""
    held = held_back(report, force)
    if held:
        raise ReleaseError(held)
    log.warning("the report's verdict on %s is %s; released all the same: %s", version, WORDS[verdict], force)
    return " ".join(force.split())


LONGEST_NAME, LONGEST_NOTE = 200, 2000
"""Characters that a history takes (records.Approval), and so does Prefect's form."""


def approval(name: str, note: str, door: Literal["prefect", "command line"]) -> Approval:
    """A person's yes, with the time of now.

    Raises:
        ReleaseError: there is no name, or name or note are longer than a history takes.
    """
    by, note = " ".join(name.split()), note.strip()
    if not 0 < len(by) <= LONGEST_NAME:
        raise ReleaseError(f"expected the name of the person who approves, of at most {LONGEST_NAME} characters, found {len(by) or 'none'}")
    if len(note) > LONGEST_NOTE:
        raise ReleaseError(f"expected a note on the approval of at most {LONGEST_NOTE:,} characters, found {len(note):,}")
    return Approval(by=by, note=note, at=datetime.now(UTC).isoformat(timespec="seconds"), door=door)


def approved(package: Artifact, plan: Plan, store: Store, approval: Approval | None) -> Approval | None:
    """The approval that a release of the package is made with; None where the plan asks for none and nobody gave one.

    Raises:
        ReleaseError: the plan asks for one and there is none.
    """
    known = approval or _under_way(package, plan, store)
    if known is None and plan.release.approval == "required":
        raise ReleaseError(
            f"the plan of {plan.model} says release.approval: required, and nobody has approved {package.digest[:12]}; read its report, then "
            "`animl-pipeline release PLAN --approve-as NAME`, or start release/release on the Prefect server, which asks in its UI"
        )
    return known


def lacks_approval(package: Artifact, plan: Plan, store: Store) -> bool:
    """Whether a person must be asked before the package is released."""
    return plan.release.approval == "required" and _under_way(package, plan, store) is None


def approval_of(package: Artifact, plan: Plan, store: Store) -> Approval | None:
    """With whose yes the package was released last."""
    known = [r.approval for r in release_history(plan, store) if r.kind == "release" and r.package and r.package.digest == package.digest]
    return known[-1] if known else None


def _under_way(package: Artifact, plan: Plan, store: Store) -> Approval | None:
    """The approval of the release that is in service, or that was killed on its way there: doing it again is no new release."""
    held = [r for r in release_history(plan, store) if r.state != "rolled_back"]
    if not held or held[-1].package is None or held[-1].package.digest != package.digest:
        return None
    return held[-1].approval
