"""MLflow: a training is logged once, nothing is sent unless an address is set, and no secret leaves the settings."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import SecretStr

from animl_pipeline.config.settings import Settings, load_settings
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.evaluation_results import ClassScores, Metrics, Report
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import TRAINING_HISTORY
from animl_pipeline.core.tables import write_table
from animl_pipeline.integrations.mlflow import check_tracking_uri, track_training, tracking_uri
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.support.paths import ROOT
from tests.support.training_crops import CLASSES, plan_with

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),  # MLflow keeps its connections open
]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that are set for MLflow do not outlive the test."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def make_step(store: Store, step: str, files: dict[str, str]) -> Artifact:
    """An artifact with these files; of the step training also a history of two epochs."""

    def build(space: Workspace) -> StepOutput:
        for name, text in files.items():
            (space.out / name).write_text(text, encoding="utf-8")
        if step == "training":
            rows = [{"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e, "val_macro_ap": 0.4 * e, "val_macro_f1": 0.3 * e, "lr": 0.1} for e in (1, 2)]
            write_table(space.out, TRAINING_HISTORY, pd.DataFrame(rows))
        return StepOutput(Counts(kept=1))

    return store.make(Step(step, version=1), config=files, build=build)


def make_report(store: Store, version: str = "abc") -> Report:
    """A report with its artifacts in the store."""
    scores = [
        ClassScores(id=c, examples=4, locations=2, precision=0.5, recall=0.5, f1=0.5, average_precision=None if c == "skunk" else 0.75)
        for c in CLASSES
    ]
    metrics = Metrics(
        examples=12, locations=6, accuracy=0.5, macro_precision=0.5, macro_recall=0.5, macro_f1=0.625, macro_average_precision=0.75,
        classes=tuple(scores), confusion=((4, 0, 0), (0, 4, 0), (0, 0, 4)),
    )  # fmt: skip
    return Report(
        model="island", version=version, headline="It may be released.", metrics=metrics, verdict="promote",
        model_artifact=make_step(store, "training", {"model.onnx": version}),
        evaluation=make_step(store, "evaluation", {"report.html": version, "metrics.json": "{}", "confusion.png": "png"}),
        package=make_step(store, "package", {"model.tar.gz": version, "card.json": "{}"}),
    )  # fmt: skip


def test_a_training_is_logged_once_with_parameters_curves_scores_files_and_a_model_version(store: Store, settings: Settings, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracked = settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)})
    run = track_training(make_report(store), plan_with(), store, tracked)
    assert run is not None
    assert track_training(make_report(store), plan_with(), store, tracked) == run

    from mlflow.tracking import MlflowClient

    client = MlflowClient(address, address)
    logged = client.get_run(run)
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["animl.version"] == "abc"
    assert logged.data.tags["animl.verdict"] == "promote"
    assert logged.data.params["train.backbone"] == "test_resnet"
    assert logged.data.params["classes"] == "fox, bird, skunk"
    assert logged.data.metrics["test/macro_f1"] == 0.625
    assert logged.data.metrics["test/average_precision/fox"] == 0.75
    assert "test/average_precision/skunk" not in logged.data.metrics
    assert [(m.step, m.value) for m in client.get_metric_history(run, "val_macro_ap")] == [(1, 0.4), (2, 0.8)]
    assert {f.path for folder in ("report", "model") for f in client.list_artifacts(run, folder)} == {
        "report/report.html", "report/metrics.json", "report/confusion.png", "model/model.tar.gz", "model/card.json",
    }  # fmt: skip
    (version,) = client.search_model_versions("name = 'island'")
    assert (version.run_id, version.tags["animl.version"]) == (run, "abc")
    assert version.source is not None
    assert version.source.endswith("/model")


def test_a_run_that_a_killed_flow_has_begun_is_completed(store: Store, settings: Settings, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracked = settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)})
    client = MlflowClient(address, address)
    begun = client.create_run(
        client.create_experiment("island", (tmp_path / "files").as_uri()), tags={"animl.package": make_report(store).package.digest}
    ).info.run_id
    client.log_param(begun, "train.backbone", "test_resnet")
    assert track_training(make_report(store), plan_with(), store, tracked) == begun
    assert client.get_run(begun).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("address", "uri", "redacted"),
    [
        ("http://a:b@host:5000/ml?x=y", "http://host:5000/ml", "http://host:5000/ml"),
        ("sqlite:////data/m.db", "sqlite:////data/m.db", "sqlite:////data/m.db"),
        ("postgresql+psycopg://a:b@host/ml", "postgresql+psycopg://a:b@host/ml", "postgresql+psycopg://host/ml"),
    ],
)
def test_the_redacted_address_has_no_user_and_password(settings: Settings, address: str, uri: str, redacted: str) -> None:
    found = tracking_uri(settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)}))
    assert found == (uri, redacted)


def test_nothing_is_sent_unless_an_address_is_set(store: Store, settings: Settings) -> None:
    assert settings.mlflow_tracking_uri.get_secret_value() == ""
    assert track_training(make_report(store), plan_with(), store, settings) is None


class Unauthorized(BaseHTTPRequestHandler):
    """Answers 401 and keeps the Authorization headers that it gets."""

    headers_seen: list[str | None]

    def do_GET(self) -> None:
        self.headers_seen.append(self.headers.get("Authorization"))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"who are you?")

    do_POST = do_GET  # noqa: N815 - http.server's own names

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def unauthorized_server() -> Iterator[tuple[int, list[str | None]]]:
    handler = type("Handler", (Unauthorized,), {"headers_seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], handler.headers_seen
    server.shutdown()
    server.server_close()


def test_a_password_in_the_address_reaches_mlflow_but_no_log_and_a_refusal_does_not_stop_the_flow(
    store: Store,
    settings: Settings,
    unauthorized_server: tuple[int, list[str | None]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port, headers_seen = unauthorized_server
    monkeypatch.setenv("ANIML_MLFLOW_TRACKING_URI", f"http://r4nger:s3cr%2Fet@127.0.0.1:{port}")
    tracked = settings.model_copy(update={"mlflow_tracking_uri": load_settings().mlflow_tracking_uri})
    with caplog.at_level(logging.DEBUG):
        assert track_training(make_report(store), plan_with(), store, tracked) is None
    assert headers_seen[0] == f"Basic {base64.b64encode(b'r4nger:s3cr/et').decode()}"
    logged = " ".join(r.getMessage() for r in caplog.records)
    assert f"MLflow at http://127.0.0.1:{port}" in logged
    for secret in ("s3cr", "r4nger"):
        assert secret not in logged
        assert secret not in repr(tracked)
        assert secret not in tracked.model_dump_json()


def test_an_mlflow_that_does_not_answer_does_not_stop_the_flow(store: Store, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    tracked = settings.model_copy(update={"mlflow_tracking_uri": SecretStr("http://127.0.0.1:9")})
    assert track_training(make_report(store), plan_with(), store, tracked) is None
    assert "MLflow at http://127.0.0.1:9" in caplog.text


@pytest.mark.parametrize("address", ["mlflow.example.org", "ftp://user:s3cret@host/x", "file:///tmp/runs"])
def test_an_invalid_address_is_refused_before_anything_begins(settings: Settings, address: str) -> None:
    with pytest.raises(SettingsError) as refused:
        check_tracking_uri(settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)}))
    assert refused.value.code == "invalid_tracking_uri"
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_library_sends_telemetry() -> None:
    """As each library itself says, after the command line has prepared its process."""
    script = """
from animl_pipeline.cli.prefect_connection import prepare_prefect
from animl_pipeline.config.settings import Settings
from animl_pipeline.integrations.mlflow import check_tracking_uri
prepare_prefect()
check_tracking_uri(Settings(mlflow_tracking_uri="http://127.0.0.1:9"))
from mlflow.telemetry.utils import is_telemetry_disabled
from prefect.settings import get_current_settings
from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
import os
print(is_telemetry_disabled(), not get_current_settings().server.analytics_enabled, HF_HUB_DISABLE_TELEMETRY, os.environ["DO_NOT_TRACK"] == "1")
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PREFECT", "DO_NOT", "CI", "GITHUB", "PYTEST"))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, env=kept)
    assert done.stdout.split() == ["True"] * 4, done.stderr
