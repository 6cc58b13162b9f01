"""A store with reports: a model that became better over three versions, a trial, two releases, and a page of another step."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.evaluation_results import Metrics, ProductionScore, Report, SequenceScores
from animl_pipeline.core.release_and_reference_types import Approval
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.deploy.release_history import close_record, new_record, write_record
from animl_pipeline.deploy.trained_versions import TrainedVersion, save_report, save_version
from animl_pipeline.steps.evaluation import read_metrics, write_headline
from animl_pipeline.storage.store import StepOutput, Store, Workspace
from tests.support.colour_models import (
    EvaluatedModel,
    fit_linear,
    island_crops,
    island_plan,
    make_data_steps,
    make_linear_model,
    run_evaluation_steps,
)
from tests.support.command_line import COMMAND
from tests.support.endpoint_process import wait_until
from tests.support.team_server import free_port

AUTH = ("ranger", "owls fly at night")
NOTE = "<b>looked</b> at the rats"


def fill_with_reports(store: Store) -> list[Report]:
    """Put the versions into a store; their reports, the oldest first, the trial last."""
    plan, crops = island_plan(), island_crops(noise=60.0)
    steps = make_data_steps(store, crops, plan, tuple(island_plan().labels.classes), image_id="isle:{:032x}")
    fits = [fit_linear(crops, shuffled="rat"), fit_linear(crops[:30]), fit_linear(crops)]
    reports = []
    for number, fit in enumerate(fits):
        model = make_linear_model(store, fit)
        made = run_evaluation_steps(store, model, steps, plan)
        metrics = read_metrics(made.evaluation, store)
        production = None if number == 0 else _production(metrics, 0.1 * number)
        report = Report(
            model="isle", version=f"{number + 1}" * 12, headline=write_headline(metrics), verdict=metrics.verdict, reasons=metrics.reasons,
            metrics=metrics.model_copy(update={"production": production}), model_artifact=model, evaluation=made.evaluation, package=made.package,
        )  # fmt: skip
        _save(report, f"2026-0{number + 1}-15", store)
        if number:
            _release(report, made, store)
        save_report(report, store)
        reports.append(report)
    trial = reports[-1].model_copy(update={"version": "4" * 12, "package": reports[-1].package.model_copy(update={"digest": "4" * 64})})
    _save(trial, "2026-04-15", store, "train.epochs 3")
    _make_page(store)
    return [*reports, trial]


def _save(report: Report, day: str, store: Store, *changes: str) -> None:
    save_version(TrainedVersion(report=report, trained_at=f"{day}T08:00:00+00:00", changes=changes), store)


def _production(metrics: Metrics, more: float) -> ProductionScore:
    """Scores as in production that grow with ``more``."""
    found = 8 + round(20 * more)
    classes = tuple(
        SequenceScores(
            id=c.id, sequences=20, locations=4, hits=found, missed_by_detector=4, missed_by_threshold=3, missed_by_classifier=13 - found,
            false_alarms_on_empty=1, false_alarms_on_others=1, precision=0.5 + more, recall=0.4 + more, f1=0.45 + more,
            false_alarms_per_1000_empty=20, recall_interval=(0.3 + more, 0.6 + more),
        )
        for c in metrics.classes
    )  # fmt: skip
    return ProductionScore(
        images=200, sequences=80, empty_sequences=20, locations=4, detector_confidence=0.1, classes=classes,
        false_alarms_per_1000_empty=50 - 100 * more, macro_f1_interval=(0.35 + more, 0.55 + more),
    )  # fmt: skip


def _release(report: Report, made: EvaluatedModel, store: Store) -> None:
    begun = new_record(
        "release", model="isle", base_name="isle", endpoint="isle", endpoint_config=f"isle-{report.version}", previous_config=None,
        sagemaker_model=f"isle-{report.version}", version=report.version, package=made.package,
        approval=Approval(by="island team", note=NOTE, at="2026-03-01T10:00:00+00:00", given_in="prefect"),
    )  # fmt: skip
    close_record(write_record(begun, store), "done", store)


def _make_page(store: Store) -> None:
    def build(space: Workspace) -> StepOutput:
        (space.out / "monitor.html").write_text("<!doctype html><html lang=en><title>Monitor</title><p>All is well.</p>", encoding="utf-8")
        (space.out / "months.csv").write_text("month,found\n2026-01,0.9\n", encoding="utf-8")
        (space.out / "model.onnx").write_bytes(b"not for everybody")
        return StepOutput(Counts(kept=1))

    store.make(Step("monitor", version=1), build=build)


@contextmanager
def report_server(folder: Path, address: str, **more: str) -> Iterator[str]:
    """The address of `animl-pipeline report-server` for the store at ``address``, as a process."""
    port = free_port()
    ours: Mapping[str, str] = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "ANIML_"))}
    environment = {**ours, "ANIML_STORE": address, "PREFECT_API_AUTH_STRING": ":".join(AUTH), "PREFECT_HOME": str(folder / "prefect"), **more}
    with (folder / "reports.log").open("wb") as log:
        server = subprocess.Popen([*COMMAND, "report-server", "--port", str(port)], env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: server.poll() is not None or _answers(port), "the report server answers")
        assert server.poll() is None, (folder / "reports.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        assert server.wait(timeout=30) == 0


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok
    except requests.RequestException:
        return False
