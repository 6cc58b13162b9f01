"""A report as MLflow's parameters, metrics, files and model version."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animl_pipeline.config import Plan
from animl_pipeline.core.records import Metrics, Report
from animl_pipeline.integrations.mlflow.address import Address
from animl_pipeline.storage.step_cache import Store

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

PACKAGE_TAG = "animl.package"
CURVES = ("train_loss", "val_loss", "val_macro_ap", "val_macro_f1", "lr")
FILES = {"report": ("report.html", "metrics.json", "confusion.png"), "model": ("model.tar.gz", "card.json")}
"""Folder in MLflow → what of the evaluation and of the package is put there."""
TOTALS = ("examples", "locations", "accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_average_precision")
OF_CLASS = ("precision", "recall", "f1", "average_precision", "examples")
AT_ONCE = 90
"""MLflow takes 100 parameters a request."""


def told(where: Address, report: Report, plan: Plan, store: Store) -> str | None:
    """The run's id; None where MLflow does not take it, which is said and stops nobody."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(where.given, where.given)
        experiment = _experiment(client, where, plan.model)
        run, finished = _run(client, experiment, report)
        if not finished:
            _tell(client, run, report, plan, store)
            _register(client, run, report)
            client.set_terminated(run)
    except (MlflowException, OSError) as e:  # requests' errors are OSErrors
        said = " ".join(str(e).split()).replace(where.given, where.bare)
        log.warning("MLflow at %s does not take this training (%s: %s); it is in the store all the same", where.bare, type(e).__name__, said[:300])
        return None
    return run


def _experiment(client: MlflowClient, where: Address, name: str) -> str:
    """The experiment of a model, by its name."""
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    return str(client.create_experiment(name, artifact_location=_files_beside(where.given)))


def _files_beside(address: str) -> str | None:
    """Where files go with a database file of one's own, which has no server to say so."""
    if not address.startswith("sqlite:///"):
        return None
    return (Path(address.removeprefix("sqlite:///")).resolve().parent / "mlflow-files").as_uri()


def _run(client: MlflowClient, experiment: str, report: Report) -> tuple[str, bool]:
    """The run of this package, begun now or by somebody who did not come to the end, and whether all is told already."""
    found = client.search_runs([experiment], f"tags.`{PACKAGE_TAG}` = '{report.package.digest}'")
    finished = [run for run in found if run.info.status == "FINISHED"]
    if found:
        return str((finished or found)[0].info.run_id), bool(finished)
    tags = {
        PACKAGE_TAG: report.package.digest,
        "animl.model": report.model,
        "animl.version": report.version,
        "animl.verdict": report.verdict or "none",
        "mlflow.note.content": report.headline,
    }
    return str(client.create_run(experiment, run_name=f"{report.model} {report.version}", tags=tags).info.run_id), False


def _tell(client: MlflowClient, run: str, report: Report, plan: Plan, store: Store) -> None:
    from mlflow.entities import Param

    params = [Param(name, str(value)) for name, value in _parameters(plan)]
    for start in range(0, len(params), AT_ONCE):
        client.log_batch(run, params=params[start : start + AT_ONCE])
    metrics = [*_curves(report, store), *_scores(report.metrics)]
    for start in range(0, len(metrics), 10 * AT_ONCE):
        client.log_batch(run, metrics=metrics[start : start + 10 * AT_ONCE])
    for folder, names in FILES.items():
        artifact = report.evaluation if folder == "report" else report.package
        for name in names:
            client.log_artifact(run, str(store.path(artifact, name)), folder)


def _parameters(plan: Plan) -> Iterator[tuple[str, Any]]:
    """What the model was trained by, flat. Addresses without their query: a signature must not travel."""
    from animl_pipeline.storage.remote import bare_address

    train = plan.train.model_dump(mode="json", exclude={"sagemaker"})
    for key in ("weights", "fallback_weights"):
        train[key] = bare_address(train[key])
    yield from ((f"train.{key}", value) for key, value in train.items())
    yield "view.size", plan.model_input.size
    yield "classes", ", ".join(plan.labels.classes)
    yield "sources", ", ".join(source.name for source in plan.sources)


def _curves(report: Report, store: Store) -> Iterator[Metric]:
    """Each epoch's figures."""
    from mlflow.entities import Metric

    at = _now()
    for row in store.table(report.model_artifact, "history.parquet").to_dict("records"):
        for name in CURVES:
            yield Metric(name, float(row[name]), at, int(row["epoch"]))


def _scores(metrics: Metrics) -> Iterator[Metric]:
    """The scores on the test places, all in all and of each class."""
    from mlflow.entities import Metric

    at = _now()
    for name in TOTALS:
        yield Metric(f"test/{name}", float(getattr(metrics, name)), at, 0)
    for scores in metrics.classes:
        for name in OF_CLASS:
            value = getattr(scores, name)
            if value is not None:
                yield Metric(re.sub(r"[^\w\-. /]", "_", f"test/{name}/{scores.id}"), float(value), at, 0)


def _register(client: MlflowClient, run: str, report: Report) -> None:
    """A version of the registered model of that name, which leads to the run's files."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(report.model)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if client.search_model_versions(f"run_id = '{run}'"):
        return
    source = f"{client.get_run(run).info.artifact_uri}/model"
    tags = {"animl.version": report.version, "animl.verdict": report.verdict or "none"}
    client.create_model_version(report.model, source, run, tags=tags, description=report.headline)


def _now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
