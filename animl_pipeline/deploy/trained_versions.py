"""The versions of a model that trainings made, its latest report, and when its last training began.

A version was made by the plan, or as a trial, in which a run changed something of the plan.

Each package has a small file in the store, ``reports/<model>/versions/<digest of the package>.json``. A release and a prediction take
the latest version that is no trial, unless they are given a version.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from pydantic import Field, ValidationError

from animl_pipeline.config import Plan
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.frozen_record import Record
from animl_pipeline.deploy.release_gate_and_approval import needs_approval
from animl_pipeline.inference.classifier import CARD_FILE, read_card
from animl_pipeline.steps.evaluation import read_metrics, write_headline
from animl_pipeline.storage.store import Store

log = logging.getLogger(__name__)

MIN_CHARACTERS = 4
"""The first characters of a version are enough to name it, from this many on."""


class TrainedVersion(Record):
    """A training's report, when it was written, and what the run changed of the plan (nothing unless it was a trial)."""

    report: Report
    trained_at: str = Field(default="", description="UTC, ISO 8601; empty in reports of earlier versions of the pipeline")
    changes: tuple[str, ...] = Field(default=(), description="such as 'train.epochs 3'")

    def is_trial(self) -> bool:
        """Whether the run changed something of the plan."""
        return bool(self.changes)


def save_version(trained: TrainedVersion, store: Store) -> None:
    """Add a training to its model's versions. A trial does not replace what the plan itself made of the same content."""
    name = f"{_folder(trained.report.model)}{trained.report.package.digest}.json"
    if trained.is_trial():
        known = _read(name, store)
        if known is not None and not known.is_trial():
            return
    store.object_store.put(name, trained.model_dump_json(indent=1).encode())


def trained_versions(model: str, store: Store) -> tuple[TrainedVersion, ...]:
    """All versions of a model, the oldest first. Files that this version of the pipeline cannot read are left out, with a warning."""
    found = {v.report.package.digest: v for v in _read_all(model, store)}
    data = store.object_store.read(f"reports/{model}/newest.json")
    if data is not None:
        try:
            latest = Report.model_validate_json(data)
            found.setdefault(latest.package.digest, TrainedVersion(report=latest))
        except ValidationError:
            log.warning("reports/%s/newest.json in the store cannot be read by this version; it is left out", model)
    return tuple(sorted(found.values(), key=lambda v: v.trained_at))


def find_version(model: str, version: str, store: Store) -> TrainedVersion:
    """The version of a model with this name, a name that begins so, or this digest of its package. Of several packages of one version, the latest.

    Raises:
        EvaluationError: no version (code "unknown_version") or several (code "several_versions") begin so; the message lists them.
    """
    versions = trained_versions(model, store)
    wanted = version.strip()
    found = [v for v in versions if wanted in {v.report.version, v.report.package.digest}]
    if not found and len(wanted) >= MIN_CHARACTERS:
        found = [v for v in versions if v.report.version.startswith(wanted)]
    names = sorted({v.report.version for v in found})
    if len(names) == 1:
        return found[-1]
    if names:
        raise EvaluationError(f"{len(names)} versions of {model} begin with {wanted!r}: {', '.join(names)}; give more of it", code="several_versions")
    known = ", ".join(dict.fromkeys(v.report.version for v in reversed(versions))) or "none"
    raise EvaluationError(
        f"expected a version of {model} in the store at {store.object_store}, found {version!r}; there are: {known} (animl-pipeline versions PLAN)",
        code="unknown_version",
    )


def _read_all(model: str, store: Store) -> Iterator[TrainedVersion]:
    for name in store.object_store.names(_folder(model)):
        trained = _read(name, store)
        if trained is not None:
            yield trained


def _read(name: str, store: Store) -> TrainedVersion | None:
    data = store.object_store.read(name)
    if data is None:
        return None
    try:
        return TrainedVersion.model_validate_json(data)
    except ValidationError:
        log.warning("%s in the store cannot be read by this version; it is left out", name)
        return None


def _folder(model: str) -> str:
    return f"reports/{model}/versions/"


def save_report(report: Report, store: Store) -> None:
    """Save ``report`` as its model's latest."""
    store.object_store.put(_report_name(report.model), report.model_dump_json(indent=1).encode())


def read_report(model: str, version: str, store: Store) -> Report:
    """The report of a version of a model, which may be a trial; of the latest version that is no trial if ``version`` is empty.

    Raises:
        EvaluationError: as :func:`read_latest_report`, or as ``trained_versions.find_version``.
    """
    return find_version(model, version, store).report if version.strip() else read_latest_report(model, store)


def read_latest_report(model: str, store: Store) -> Report:
    """The latest report of a model. Trials do not count.

    Raises:
        EvaluationError: there is none (code "no_report"), or this version cannot read it (code "other_version").
    """
    data = store.object_store.read(_report_name(model))
    if data is None:
        trials = trained_versions(model, store)
        found = f"only the trial {trials[-1].report.version}, which --version takes" if trials else "none"
        raise EvaluationError(
            f"expected a report of the model {model!r} in the store at {store.object_store}, found {found}; run `animl-pipeline retrain PLAN` first",
            code="no_report",
        )
    try:
        return Report.model_validate_json(data)
    except ValidationError as e:
        raise EvaluationError(
            f"the report {_report_name(model)} in the store at {store.object_store} is of another version; run `animl-pipeline retrain PLAN` again",
            code="other_version",
        ) from e


def latest_package_digest(model: str, store: Store) -> str | None:
    """The digest of the package in a model's latest report; None if there is no report that can be read."""
    try:
        return read_latest_report(model, store).package.digest
    except EvaluationError:
        return None


def record_training_start(model: str, started: datetime, store: Store) -> None:
    """Save when a completed training started. Labels validated before that time count as used."""
    store.object_store.put(_training_name(model), json.dumps({"begun": started.astimezone(UTC).isoformat()}).encode())


def last_training_start(model: str, store: Store) -> datetime | None:
    """When the model's last completed training started, None if there was none.

    Raises:
        EvaluationError: the saved time cannot be read.
    """
    data = store.object_store.read(_training_name(model))
    try:
        return None if data is None else datetime.fromisoformat(json.loads(data)["begun"])
    except (ValueError, KeyError, TypeError) as e:
        raise EvaluationError(
            f"{_training_name(model)} in the store at {store.object_store} cannot be read; delete it, then all validated labels count as new",
            code="damaged_training_start",
        ) from e


def _training_name(model: str) -> str:
    return f"reports/{model}/trained.json"


def _report_name(model: str) -> str:
    return f"reports/{model}/newest.json"


class TrainingOutcome(Record):
    """A training's report, and what it means for the next steps.

    ``unchanged``: whether the latest report before it was of the same package; of a trial, whether a version before it was.
    """

    report: Report
    unchanged: bool
    needs_approval: bool


def record_training(
    plan: Plan,
    model: Artifact,
    evaluation: Artifact,
    package: Artifact,
    step_counts: Sequence[tuple[str, Counts]],
    begun: datetime,
    store: Store,
    changes: Sequence[str] = (),
) -> TrainingOutcome:
    """List a training among its model's versions. Unless it is a trial, make its report the latest, and note when the training began.

    ``begun``: when the run began; what was validated before counts as learnt. ``changes``: what the run changed of the plan; with any, the
    training is a trial.
    """
    metrics = read_metrics(evaluation, store)
    report = Report(
        model=plan.model,
        version=read_card(store.path(package, CARD_FILE)).version,
        headline=write_headline(metrics),
        metrics=metrics,
        model_artifact=model,
        evaluation=evaluation,
        package=package,
        step_counts=tuple(step_counts),
        verdict=metrics.verdict,
        reasons=metrics.reasons,
    )
    known = {v.report.package.digest for v in trained_versions(plan.model, store)}
    unchanged = package.digest in known if changes else latest_package_digest(plan.model, store) == package.digest
    save_version(TrainedVersion(report=report, trained_at=datetime.now(UTC).isoformat(timespec="seconds"), changes=tuple(changes)), store)
    if not changes:
        save_report(report, store)
        record_training_start(plan.model, begun, store)
    return TrainingOutcome(report=report, unchanged=unchanged, needs_approval=needs_approval(package, plan, store))
