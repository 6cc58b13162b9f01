"""Whether a person has said yes to a release, where the plan asks for that. Nothing else counts as a yes: no verdict, no --force."""

from __future__ import annotations

from animl_pipeline.endpoint.history import release_history
from animl_pipeline.errors import ReleaseError
from animl_pipeline.plan import Plan
from animl_pipeline.records import Approval, Artifact
from animl_pipeline.store import Store


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
