"""Log a training to MLflow: parameters, curves, scores, files, and a version in its model registry.

Nothing is sent unless ANIML_MLFLOW_TRACKING_URI is set. The store stays the reference, MLflow has a copy. If MLflow does not
answer, a warning is logged and the flow continues. MLflow's client is used instead of its fluent functions, which would put the
address, with its password, into the environment.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from animl_pipeline.config import Plan
from animl_pipeline.config.settings import Settings, set_library_defaults
from animl_pipeline.core.errors import SettingsError, redact_url
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.table_schemas import TRAINING_HISTORY
from animl_pipeline.storage.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the usual seven take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
PACKAGE_TAG = "animl.package"
CURVES = ("train_loss", "val_loss", "val_macro_ap", "val_macro_f1", "lr")
REPORT_FILES, MODEL_FILES = ("report.html", "metrics.json", "confusion.png"), ("model.tar.gz", "card.json")
TEST_SCORES = ("examples", "locations", "accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_average_precision")
CLASS_SCORES = ("precision", "recall", "f1", "average_precision", "examples")
MAX_METRICS = 1000
"""MLflow accepts this many metrics in a request."""


class TrackingUri(NamedTuple):
    """MLflow's address: as MLflow gets it, and as a message may show it."""

    uri: str
    redacted: str


def check_tracking_uri(settings: Settings) -> None:
    """Check that the tracking address can be used, before hours are spent.

    Raises:
        SettingsError: ``invalid_tracking_uri`` or ``mlflow_not_installed``.
    """
    tracking_uri(settings)


def tracking_uri(settings: Settings) -> TrackingUri | None:
    """The tracking address of the settings, or None. User and password of an http address go into MLflow's own variables.

    Raises:
        SettingsError: ``invalid_tracking_uri`` or ``mlflow_not_installed``.
    """
    given = settings.mlflow_tracking_uri.get_secret_value().strip()
    if not given:
        return None
    parts = urlsplit(given)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in SCHEMES:
        message = (
            "ANIML_MLFLOW_TRACKING_URI: expected an address such as https://mlflow.example.org or sqlite:////data/mlflow.db,"
            f" found one that begins with {parts.scheme or 'nothing before ://'!r}"
        )
        raise SettingsError(message, code="invalid_tracking_uri")
    if find_spec("mlflow") is None:
        message = "ANIML_MLFLOW_TRACKING_URI is set, but MLflow is not installed; install animl-pipeline[mlflow], or unset it"
        raise SettingsError(message, code="mlflow_not_installed")
    set_library_defaults(**MLFLOW_DEFAULTS)
    redacted = redact_url(given)
    if scheme not in {"http", "https"}:
        return TrackingUri(given, redacted)
    if parts.username:
        set_library_defaults(MLFLOW_TRACKING_USERNAME=unquote(parts.username), MLFLOW_TRACKING_PASSWORD=unquote(parts.password or ""))
    return TrackingUri(redacted, redacted)


def track_training(report: Report, plan: Plan, store: Store, settings: Settings) -> str | None:
    """Log a report as a run of the experiment that has the model's name, and return the run's id.

    A package is logged once: the same report gives the same run, and a run that a killed flow has begun is completed. None comes
    back if no tracking address is set, or if MLflow does not answer; then a warning is logged.

    Raises:
        SettingsError: as :func:`tracking_uri`.
    """
    address = tracking_uri(settings)
    if address is None:
        return None
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(address.uri, address.uri)
        run, finished = _find_or_create_run(client, address, report)
        if not finished:
            _log_run(client, run, report, plan, store)
            _register_version(client, run, report)
            client.set_terminated(run)
    except (MlflowException, OSError) as e:  # requests' errors are OSErrors
        reason = " ".join(str(e).split()).replace(address.uri, address.redacted)[:300]
        message = "MLflow at %s did not accept this training (%s: %s); the store has it, and the next run tries again"
        log.warning(message, address.redacted, type(e).__name__, reason)
        return None
    log.info("%s %s is run %s of MLflow at %s", report.model, report.version, run, address.redacted)
    return run


def _find_or_create_run(client: MlflowClient, address: TrackingUri, report: Report) -> tuple[str, bool]:
    """The id of the package's run, and whether it is complete."""
    known = client.get_experiment_by_name(report.model)
    experiment = known.experiment_id if known else client.create_experiment(report.model, artifact_location=_artifact_folder(address.uri))
    runs = client.search_runs([str(experiment)], f"tags.`{PACKAGE_TAG}` = '{report.package.digest}'")
    finished = [run for run in runs if run.info.status == "FINISHED"]
    if runs:
        return str((finished or runs)[0].info.run_id), bool(finished)
    tags = {PACKAGE_TAG: report.package.digest, "animl.model": report.model, "mlflow.note.content": report.headline, **_version_tags(report)}
    return str(client.create_run(str(experiment), run_name=f"{report.model} {report.version}", tags=tags).info.run_id), False


def _artifact_folder(uri: str) -> str | None:
    """Where files go: a SQLite file has no server that says so, its files go into a folder beside it."""
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-files").as_uri() if uri.startswith("sqlite:///") else None


def _log_run(client: MlflowClient, run: str, report: Report, plan: Plan, store: Store) -> None:
    from mlflow.entities import Param

    client.log_batch(run, params=[Param(name, value) for name, value in _parameters(plan).items()])
    metrics = [*_curves(report, store), *_test_scores(report)]
    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run, metrics=metrics[start : start + MAX_METRICS])
    for folder, artifact, names in (("report", report.evaluation, REPORT_FILES), ("model", report.package, MODEL_FILES)):
        for name in names:
            client.log_artifact(run, str(store.path(artifact, name)), folder)


def _parameters(plan: Plan) -> dict[str, str]:
    """The section train and what else shapes the model. URLs lose their query, which may be a signature."""
    train = plan.train.model_dump(mode="json", exclude={"sagemaker"})
    train |= {key: redact_url(train[key]) for key in ("weights", "fallback_weights")}
    train["networks"] = ", ".join(n.network if n.weights == "timm" else f"{n.network} ({redact_url(n.weights)})" for n in plan.train.networks)
    return {f"train.{key}": str(value) for key, value in train.items()} | {
        "model_input.size": str(plan.model_input.size),
        "classes": ", ".join(plan.labels.classes),
        "sources": ", ".join(source.name for source in plan.sources),
    }


def _curves(report: Report, store: Store) -> Iterator[Metric]:
    """The training history, with the epoch as step."""
    from mlflow.entities import Metric

    now_ms = time.time_ns() // 1_000_000
    for row in store.table(report.model_artifact, TRAINING_HISTORY).to_dict("records"):
        for name in CURVES:
            yield Metric(name, float(row[name]), now_ms, int(row["epoch"]))


def _test_scores(report: Report) -> Iterator[Metric]:
    """The scores on the test set: of the model and of each class."""
    from mlflow.entities import Metric

    scores = {f"test/{name}": getattr(report.metrics, name) for name in TEST_SCORES}
    scores |= {f"test/{name}/{c.id}": getattr(c, name) for c in report.metrics.classes for name in CLASS_SCORES}
    now_ms = time.time_ns() // 1_000_000
    for name, value in scores.items():
        if value is not None:
            yield Metric(re.sub(r"[^\w\-. /]", "_", name), float(value), now_ms, 0)


def _register_version(client: MlflowClient, run: str, report: Report) -> None:
    """Add a version to the registered model of this name; it points to the run's files."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(report.model)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not client.search_model_versions(f"run_id = '{run}'"):
        source = f"{client.get_run(run).info.artifact_uri}/model"
        client.create_model_version(report.model, source, run, tags=_version_tags(report), description=report.headline)


def _version_tags(report: Report) -> dict[str, str]:
    return {"animl.version": report.version, "animl.verdict": report.verdict or "none"}
