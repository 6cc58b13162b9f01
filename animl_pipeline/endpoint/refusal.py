"""Where a release is refused before anything is touched."""

from __future__ import annotations

import logging

from animl_pipeline.endpoint.history import ReleaseRecord
from animl_pipeline.errors import ReleaseError
from animl_pipeline.records import Artifact, Report

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
