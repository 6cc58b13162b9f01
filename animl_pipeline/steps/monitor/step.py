"""The step `monitor`: labels of images in service in, figures, sequential tests, camera activity and a page out."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa

from animl_pipeline.config.monitor import MonitorConfig
from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CAMERA_ACTIVITY, SEQUENTIAL_TESTS, SERVICE_METRICS
from animl_pipeline.core.tables import write_table
from animl_pipeline.core.untrusted_text import write_csv
from animl_pipeline.steps.monitor.camera_activity import camera_activity, night_share
from animl_pipeline.steps.monitor.label_rows import from_parquet
from animl_pipeline.steps.monitor.model_figures_in_service import BIAS, service_metrics
from animl_pipeline.steps.monitor.monitor_page import render_page
from animl_pipeline.steps.monitor.monitor_result_in_words import ServiceStatus, input_warnings, service_status
from animl_pipeline.steps.monitor.read_animl import ServiceLabels
from animl_pipeline.steps.monitor.sequential_test import run_tests
from animl_pipeline.steps.monitor.service_outcomes import ServedModel, names_outside_plan, read_service_data, reviewed_sequences
from animl_pipeline.steps.monitor.unreviewed_look import UnreviewedLook
from animl_pipeline.storage.store import StepOutput, Store, Workspace, digest_of

STEP = Step(
    "monitor", version=3, sections=("monitor", "labels", "thresholds", "production"),
    writes=(SERVICE_METRICS, SEQUENTIAL_TESTS, CAMERA_ACTIVITY),
)  # fmt: skip
STATUS_FILE, PAGE_FILE, REVIEW_PAGE, REVIEW_FILE = "status.json", "monitor.html", "review.html", "review.csv"


def monitor_service(
    labels: Sequence[ServiceLabels],
    model: ServedModel,
    name: str,
    invasive: Sequence[str],
    random_images: Collection[str],
    config: MonitorConfig,
    day: date,
    store: Store,
    look: UnreviewedLook = UnreviewedLook(),  # noqa: B008 - frozen
) -> Artifact:
    """The figures of the model in service: metrics, sequential_tests and cameras as tables and CSV, status.json, monitor.html, and if there is
    one, the next review list as review.html and review.csv.

    The same labels on the same day give the same artifact.

    ``name``: the plan's model. ``invasive``: classes whose recall is tested; of the others, precision is. ``random_images``: ids of images
    that were drawn at random for review. ``day``: the last of the recent days. ``look``: at unreviewed images.
    """
    missing = sum(part.missing_images for part in labels)
    key = {
        "model": model._asdict() | {"equivalents": dict(model.equivalents), "parents": dict(model.parents), "meanings": dict(model.meanings)},
        "name": name, "invasive": list(invasive), "monitor": config.model_dump(mode="json"), "day": str(day),
        "missing": missing,
    }  # fmt: skip
    digests = {part.source: part.blob for part in labels}
    digests |= {"random": digest_of(sorted(random_images)), "look": digest_of(look.model_dump(mode="json"))}

    def build(space: Workspace) -> StepOutput:
        table = pa.concat_tables([from_parquet(store.blob(part.blob)) for part in labels]).unify_dictionaries()
        data = read_service_data(table, model, random_images)
        rows = len(table)
        del table
        sequences = reviewed_sequences(data, model)
        until_s = datetime.combine(day + timedelta(days=1), time(), UTC).timestamp()
        metrics = service_metrics(data, sequences, model)
        tests, outcomes = run_tests(sequences, model, invasive, config, until_s)
        cameras = camera_activity(data.images, config.recent_days, until_s)
        night, names = night_share(data.images, config.recent_days, until_s), names_outside_plan(data, model)
        reviewed = float(data.images.loc[data.images["version"] >= 0, "reviewed"].mean())
        warnings = input_warnings(cameras, night, names, reviewed, data.other_versions, missing)
        status = service_status(name, tests, outcomes, warnings, names, look, config)
        _write_tables(space.out, metrics, outcomes, cameras, names)
        (space.out / STATUS_FILE).write_text(status.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if look.list_page:
            (space.out / REVIEW_PAGE).write_text(look.list_page, encoding="utf-8")
            (space.out / REVIEW_FILE).write_text(look.list_csv, encoding="utf-8")
        page = render_page(status, metrics, tests, outcomes, cameras, look, model, str(day))
        (space.out / PAGE_FILE).write_text(page, encoding="utf-8")
        notes = {"labels": rows, "answers": len(data.answers), "reviewed_sequences": len(sequences.rows)}
        return StepOutput(Counts(kept=len(data.images), notes=notes, unit="images"))

    return store.make(STEP, digests=digests, config=key, build=build)


def _write_tables(
    out: Path, metrics: pd.DataFrame, outcomes: pd.DataFrame, cameras: pd.DataFrame, names: Sequence[tuple[str, int]]
) -> None:  # fmt: skip
    for schema, frame in ((SERVICE_METRICS, metrics), (SEQUENTIAL_TESTS, outcomes), (CAMERA_ACTIVITY, cameras)):
        write_table(out, schema, frame)
    write_csv(out / "metrics.csv", metrics.assign(bias=_bias(metrics)))
    write_csv(out / "cameras.csv", cameras)
    write_csv(out / "names_outside_plan.csv", pd.DataFrame(names, columns=["name", "objects"]))


def _bias(metrics: pd.DataFrame) -> pd.Series:
    fair = metrics["sample"] == "random"
    return metrics["metric"].map(BIAS).where(~fair, "Fair for the images that were not reviewed when the sample was drawn.")


def read_status(artifact: Artifact, store: Store) -> ServiceStatus:
    """The status in an artifact of this step, with the paths of its pages."""
    status = ServiceStatus.model_validate(json.loads(store.path(artifact, STATUS_FILE).read_text(encoding="utf-8")))
    review = str(store.path(artifact, REVIEW_PAGE)) if REVIEW_PAGE in store.files(artifact) else ""
    return status.model_copy(update={"page": str(store.path(artifact, PAGE_FILE)), "review_page": review})
