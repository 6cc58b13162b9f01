"""What Prefect's UI shows of a training beside its log: tables, learning curves, the confusion matrix, the verdict."""

from __future__ import annotations

import base64
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.artifacts import CURVES_FILE, Artifact
from animl_pipeline.core.evaluation_results import Report
from animl_pipeline.core.table_schemas import SPLIT_LOCATIONS
from animl_pipeline.core.untrusted_text import escape_markdown
from animl_pipeline.storage.store import Store
from tasks.step_tasks_and_retries import REMOTE_WORK
from tasks.store_and_data_paths import RunPaths


@task(name="results", task_run_name="results", **REMOTE_WORK)
def show_training(report: Report, splits: Artifact, paths: RunPaths) -> None:
    """Put a training's tables and plots among its run's artifacts. The verdict comes last, because the UI shows the newest first."""
    store = paths.open_store()
    _add_table("kept-and-dropped", "What each step kept and dropped", _kept_and_dropped(report))
    _add_table("splits", "Crops and locations of each split. No location is in two of train, val and test", _splits(splits, store))
    curves = store.path(report.model_artifact, CURVES_FILE).read_bytes()
    _add_image("learning-curves", "Learning curves, or the scores by regularisation of a head", curves)
    _add_table("thresholds", "The probability from which each class is named", _thresholds(report))
    _add_image("confusion", "Confusion matrix on the test locations", store.path(report.evaluation, "confusion.png").read_bytes())
    _add_table("scores", f"{report.model} {report.version} on the test locations", _scores(report))
    reasons = "\n".join(f"- {escape_markdown(reason)}" for reason in report.reasons)
    address = report.page_address(load_settings().reports_url)
    said = "the whole report, with the images of the mistakes"
    link = f"**Read next:** [{said}]({address})" if address else f"{said}: `{store.path(report.evaluation, 'report.html')}`"
    lines = [f"## {report.model} {escape_markdown(report.version)}", escape_markdown(report.headline), reasons, link]
    create_markdown_artifact(key="verdict", markdown="\n\n".join(lines), description="The verdict, its reasons, and the link to the report")


def link_to_page(artifact: Artifact, page: str, store: Store, reports_url: str) -> str:
    """Where people read a page of a step: a Markdown link to the report server, or without one the path in the store."""
    if reports_url:
        return f"[The page]({reports_url.rstrip('/')}/steps/{artifact.step}/{artifact.key}/{page})"
    return f"The page: `{store.path(artifact, page)}`"


def _add_table(key: str, description: str, rows: list[dict[str, Any]]) -> None:
    create_table_artifact(key=key, table=rows, description=description)


def _add_image(key: str, description: str, png: bytes) -> None:
    """As Markdown: an image artifact would also print its address, which here is the whole image."""
    image = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    create_markdown_artifact(key=key, markdown=f"![{description}]({image})", description=description)


def _kept_and_dropped(report: Report) -> list[dict[str, Any]]:
    return [
        {"step": step, "kept": c.kept, "of what": c.unit, "dropped": sum(c.dropped.values()), "why": c.drop_reasons()}
        for step, c in report.step_counts
    ]


def _splits(splits: Artifact, store: Store) -> list[dict[str, Any]]:
    locations = store.table(splits, SPLIT_LOCATIONS)
    crops = {split: locations.loc[locations["split"] == split, "crops"] for split in ("train", "val", "test", "test_later")}
    return [{"split": split, "crops": int(of_split.sum()), "locations": len(of_split)} for split, of_split in crops.items() if len(of_split)]


def _scores(report: Report) -> list[dict[str, Any]]:
    return [
        {"class": c.id, "test crops": c.examples, "locations": c.locations}
        | {"precision": _rounded(c.precision), "recall": _rounded(c.recall), "F1": _rounded(c.f1), "AP": _rounded(c.average_precision)}
        for c in report.metrics.classes
    ]


def _thresholds(report: Report) -> list[dict[str, Any]]:
    return [{"class": t.id, "aim": t.aim, "threshold": _rounded(t.value), "reached when chosen": t.describe_aim()} for t in report.metrics.thresholds]


def _rounded(value: float | None) -> str:
    """With two digits, because Prefect's tables show all sixteen."""
    return "" if value is None else f"{value:.2f}"
