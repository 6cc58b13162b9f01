"""Start the release of a trained model on the Prefect server."""

from __future__ import annotations

import logging

from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from animl_pipeline.core.evaluation_results import Report
from flows.start_training_when_validated import deployment_name

log = logging.getLogger(__name__)


def start_release(plan: str, report: Report, store: str = "") -> str:
    """Start the release of the very package that was judged, once for each package. Returns a line that says what came of it.

    ``plan``: the plan's name, as a run takes it. It must be deployed as `release/<name of its file>`.
    """
    if not PREFECT_API_URL.value():
        return "its release was not started, because no Prefect server is set; release it by hand"
    deployment = f"release/{deployment_name(plan)}"
    key = f"{deployment}/{report.model}/{report.package.digest}"  # plans may share a model, but not their endpoints
    parameters = {"plan": plan, "version": report.package.digest} | ({"store": store} if store else {})
    try:
        run = run_deployment(deployment, parameters=parameters, timeout=0, as_subflow=False, idempotency_key=key, tags=["after-retrain"])
    except ObjectNotFound:
        log.warning("the Prefect server has no deployment %r; `animl-pipeline deploy` puts it there", deployment)
        return f"its release was not started: the server has no deployment {deployment!r}"
    return f"its release is the run {run.name!r}"  # type: ignore[union-attr]  # a coroutine only in async code
