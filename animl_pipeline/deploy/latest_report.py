"""The newest report of each model, so that a release knows what to release."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from pydantic import ValidationError

from animl_pipeline.core.errors import EvaluationError
from animl_pipeline.core.records import Report
from animl_pipeline.storage.step_cache import Store


def keep_report(report: Report, store: Store) -> None:
    """Make ``report`` the newest of its model."""
    store.object_store.put(_name(report.model), report.model_dump_json(indent=1).encode())


def newest_report(model: str, store: Store) -> Report:
    """The newest report of a model.

    Raises:
        EvaluationError: there is none, or none of this version; a retrain makes it.
    """
    data = store.object_store.read(_name(model))
    if data is None:
        raise EvaluationError(
            f"expected a report of the model {model!r} in the store at {store.object_store}, found none; run `animl-pipeline retrain PLAN` first"
        )
    try:
        return Report.model_validate_json(data)
    except ValidationError as e:
        raise EvaluationError(
            f"the report {_name(model)} in the store at {store.object_store} is not one of this version; run `animl-pipeline retrain PLAN` again"
        ) from e


def newest_package(model: str, store: Store) -> str | None:
    """The digest of the package that a model's newest report is of; None where there is no report that can be read."""
    try:
        return newest_report(model, store).package.digest
    except EvaluationError:
        return None


def note_training(model: str, begun: datetime, store: Store) -> None:
    """Remember that a training which has ended began at ``begun``: what was validated before is learnt."""
    store.object_store.put(_trained(model), json.dumps({"begun": begun.astimezone(UTC).isoformat()}).encode())


def last_training(model: str, store: Store) -> datetime | None:
    """When the last training of a model that came to its end began; None where there was none."""
    data = store.object_store.read(_trained(model))
    try:
        return None if data is None else datetime.fromisoformat(json.loads(data)["begun"])
    except (ValueError, KeyError, TypeError) as e:
        raise EvaluationError(f"{_trained(model)} in the store at {store.object_store} has changed; delete it, then everything counts as new") from e


def _trained(model: str) -> str:
    return f"reports/{model}/trained.json"


def _name(model: str) -> str:
    return f"reports/{model}/newest.json"
