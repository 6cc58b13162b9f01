"""The newest report of each model, so that a release knows what to release."""

from __future__ import annotations

from pydantic import ValidationError

from animl_pipeline.errors import EvaluationError
from animl_pipeline.records import Report
from animl_pipeline.store import Store


def keep_report(report: Report, store: Store) -> None:
    """Make ``report`` the newest of its model."""
    store.depot.put(_name(report.model), report.model_dump_json(indent=1).encode())


def newest_report(model: str, store: Store) -> Report:
    """The newest report of a model.

    Raises:
        EvaluationError: there is none, or none of this version; a retrain makes it.
    """
    data = store.depot.read(_name(model))
    if data is None:
        raise EvaluationError(
            f"expected a report of the model {model!r} in the store at {store.depot}, found none; run `animl-pipeline retrain PLAN` first"
        )
    try:
        return Report.model_validate_json(data)
    except ValidationError as e:
        raise EvaluationError(
            f"the report {_name(model)} in the store at {store.depot} is not one of this version; run `animl-pipeline retrain PLAN` again"
        ) from e


def _name(model: str) -> str:
    return f"reports/{model}/newest.json"
