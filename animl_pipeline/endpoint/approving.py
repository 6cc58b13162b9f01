"""Whether a person has said yes to a release, where the plan asks for that. Nothing else counts as a yes: no verdict, no --force."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from animl_pipeline.endpoint.history import release_history
from animl_pipeline.errors import ReleaseError
from animl_pipeline.plan import Plan
from animl_pipeline.records import Approval, Artifact
from animl_pipeline.store import Store

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
