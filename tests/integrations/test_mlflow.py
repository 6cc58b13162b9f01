"""Tracking: a real MLflow shows what a retraining gave; it is told nothing unless it is set, and no secret leaves the settings."""

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
from animl_pipeline.core.errors import SettingsError
from animl_pipeline.core.records import Artifact, ClassScores, Counts, Metrics, Report
from animl_pipeline.core.step import Step
from animl_pipeline.core.tables import write_parquet
from animl_pipeline.integrations.mlflow import check_ready, track_training
from animl_pipeline.integrations.mlflow.address import tracking_address
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace
from tests.support.blots import CLASSES, plan_with
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:mlflow"),
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),  # MLflow keeps its connections to the end
]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tracking leaves for MLflow in the environment goes with the test."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def made(store: Store, step: str, files: dict[str, str]) -> Artifact:
    """A step of the store with these files; history.parquet has two epochs."""

    def build(space: Workspace) -> StepOutput:
        for name, text in files.items():
            (space.out / name).write_text(text, encoding="utf-8")
        if step == "model":
            rows = [{"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e, "val_macro_ap": 0.4 * e, "val_macro_f1": 0.3 * e, "lr": 0.1} for e in (1, 2)]
            write_parquet(space.out / "history.parquet", pd.DataFrame(rows))
        return StepOutput(Counts(kept=1))

    return store.make(Step(step, version=1), config=files, build=build)


def report_of(store: Store, version: str = "abc") -> Report:
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
        model_artifact=made(store, "model", {"model.onnx": version}),
        evaluation=made(store, "evaluation", {"report.html": version, "metrics.json": "{}", "confusion.png": "png"}),
        package=made(store, "package", {"model.tar.gz": version, "card.json": "{}"}),
    )  # fmt: skip


def test_mlflow_shows_parameters_curves_scores_files_and_a_version_once(store: Store, settings: Settings, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracked = settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)})
    run = track_training(report_of(store), plan_with(), store, tracked)
    assert run is not None
    assert track_training(report_of(store), plan_with(), store, tracked) == run

    from mlflow.tracking import MlflowClient

    client = MlflowClient(address, address)
    shown = client.get_run(run)
    assert shown.info.status == "FINISHED"
    assert shown.data.tags["animl.version"] == "abc"
    assert shown.data.tags["animl.verdict"] == "promote"
    assert shown.data.params["train.backbone"] == "test_resnet"
    assert shown.data.params["classes"] == "fox, bird, skunk"
    assert shown.data.metrics["test/macro_f1"] == 0.625
    assert shown.data.metrics["test/average_precision/fox"] == 0.75
    assert "test/average_precision/skunk" not in shown.data.metrics
    assert [(m.step, m.value) for m in client.get_metric_history(run, "val_macro_ap")] == [(1, 0.4), (2, 0.8)]
    assert {f.path for folder in ("report", "model") for f in client.list_artifacts(run, folder)} == {
        "report/report.html", "report/metrics.json", "report/confusion.png", "model/model.tar.gz", "model/card.json",
    }  # fmt: skip
    (version,) = client.search_model_versions("name = 'island'")
    assert (version.run_id, version.tags["animl.version"]) == (run, "abc")
    assert version.source is not None
    assert version.source.endswith("/model")


def test_what_a_killed_flow_left_half_told_is_told_to_its_end(store: Store, settings: Settings, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracked = settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)})
    client = MlflowClient(address, address)
    begun = client.create_run(
        client.create_experiment("island", (tmp_path / "files").as_uri()), tags={"animl.package": report_of(store).package.digest}
    ).info.run_id
    client.log_param(begun, "train.backbone", "test_resnet")
    assert track_training(report_of(store), plan_with(), store, tracked) == begun
    assert client.get_run(begun).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("address", "given", "shown"),
    [
        ("http://a:b@host:5000/ml?x=y", "http://host:5000/ml", "http://host:5000/ml"),
        ("sqlite:////data/m.db", "sqlite:////data/m.db", "sqlite:////data/m.db"),
        ("postgresql+psycopg://a:b@host/ml", "postgresql+psycopg://a:b@host/ml", "postgresql+psycopg://host/ml"),
    ],
)
def test_an_address_is_shown_without_user_and_password(settings: Settings, address: str, given: str, shown: str) -> None:
    found = tracking_address(settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)}))
    assert found == (given, shown)


def test_nobody_is_told_unless_an_address_is_set(store: Store, settings: Settings) -> None:
    assert settings.mlflow_tracking_uri.get_secret_value() == ""
    assert track_training(report_of(store), plan_with(), store, settings) is None


class Refusing(BaseHTTPRequestHandler):
    """Answers 401 and keeps what it was asked with."""

    heard: list[str | None]

    def do_GET(self) -> None:
        self.heard.append(self.headers.get("Authorization"))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"who are you?")

    do_POST = do_GET  # noqa: N815 - http.server's own names

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def refusing() -> Iterator[tuple[int, list[str | None]]]:
    handler = type("Handler", (Refusing,), {"heard": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], handler.heard
    server.shutdown()
    server.server_close()


def test_a_password_in_the_address_reaches_mlflow_and_no_log_and_a_refusal_stops_nobody(
    store: Store, settings: Settings, refusing: tuple[int, list[str | None]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, heard = refusing
    monkeypatch.setenv("ANIML_MLFLOW_TRACKING_URI", f"http://ranger:s3cr%2Fet@127.0.0.1:{port}")
    tracked = settings.model_copy(update={"mlflow_tracking_uri": load_settings().mlflow_tracking_uri})
    with caplog.at_level(logging.DEBUG):
        assert track_training(report_of(store), plan_with(), store, tracked) is None
    assert heard[0] == f"Basic {base64.b64encode(b'ranger:s3cr/et').decode()}"
    said = " ".join(r.getMessage() for r in caplog.records)
    assert f"MLflow at http://127.0.0.1:{port} does not take this training" in said
    for secret in ("s3cr", "ranger"):
        assert secret not in said
        assert secret not in repr(tracked)
        assert secret not in tracked.model_dump_json()


def test_an_mlflow_that_is_away_stops_nobody(store: Store, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    tracked = settings.model_copy(update={"mlflow_tracking_uri": SecretStr("http://127.0.0.1:9")})
    assert track_training(report_of(store), plan_with(), store, tracked) is None
    assert "it is in the store all the same" in caplog.text


@pytest.mark.parametrize("address", ["mlflow.example.org", "ftp://user:s3cret@host/x", "file:///tmp/runs"])
def test_an_address_that_is_none_is_refused_in_one_line_before_anything_begins(settings: Settings, address: str) -> None:
    with pytest.raises(SettingsError, match="ANIML_MLFLOW_TRACKING_URI") as refused:
        check_ready(settings.model_copy(update={"mlflow_tracking_uri": SecretStr(address)}))
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_library_phones_home() -> None:
    """Each library's own word for it, after the command line has prepared its process."""
    script = """
from animl_pipeline.config.settings import Settings, prepare_prefect
from animl_pipeline.integrations.mlflow import check_ready
prepare_prefect()
check_ready(Settings(mlflow_tracking_uri="http://127.0.0.1:9"))
from mlflow.telemetry.utils import is_telemetry_disabled
from prefect.settings import get_current_settings
from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
import os
print(is_telemetry_disabled(), not get_current_settings().server.analytics_enabled, HF_HUB_DISABLE_TELEMETRY, os.environ["DO_NOT_TRACK"] == "1")
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PREFECT", "DO_NOT", "CI", "GITHUB", "PYTEST"))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT, env=kept)
    assert done.stdout.split() == ["True"] * 4, done.stderr
