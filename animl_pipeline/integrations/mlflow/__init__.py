"""What a retraining gave, told to an MLflow server: parameters, curves, scores, files, and a version in its model registry.

::

    address    where MLflow is, and its credentials, which no log line shows
    telling    a report as MLflow's parameters, metrics and files

Nothing is told to anybody unless ANIML_MLFLOW_TRACKING_URI is set. The store stays the truth: what MLflow shows is a copy, and
a retraining does not fail because MLflow is away.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings
from animl_pipeline.core.records import Report
from animl_pipeline.integrations.mlflow.address import Address, check_ready, tracking_address

if TYPE_CHECKING:
    from animl_pipeline.storage.step_cache import Store

__all__ = ["Address", "check_ready", "track_training"]

log = logging.getLogger(__name__)


def track_training(report: Report, plan: Plan, store: Store, settings: Settings) -> str | None:
    """The id of the MLflow run that shows a report; None where no tracking address is set or MLflow does not answer, which is said.

    A package is told once: the same report again gives the same run.

    Raises:
        SettingsError: MLflow is not installed, or the address is none.
    """
    where = tracking_address(settings)
    if where is None:
        return None
    from animl_pipeline.integrations.mlflow.log_report import told

    run = told(where, report, plan, store)
    if run is not None:
        log.info("%s %s is run %s of %s", report.model, report.version, run, where.bare)
    return run
