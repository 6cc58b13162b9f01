"""The versions of a model that trainings made: by the plan, or as trials, in which a run changed something of the plan.

Each package has a small file in the store, ``reports/<model>/versions/<digest of the package>.json``. A release and a prediction take
the latest version that is no trial, unless they are given a version.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pydantic import Field, ValidationError

from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.frozen_record import Record
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
    Raises EvaluationError: no version (code "unknown_version") or several (code "several_versions") begin so; the message lists them.
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
