"""What a person sees of a training in Prefect's UI beside its log: tables, learning curves, the verdict, what is taken for what."""

from __future__ import annotations

import base64
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from animl_pipeline.config.settings import load_settings
from animl_pipeline.core.records import Artifact, Report
from animl_pipeline.steps.training import CURVES_FILE
from animl_pipeline.storage.step_cache import Store, open_store


def show_training(report: Report, splits: Artifact) -> None:
    """Put a training's tables and pictures among its run's artifacts; the verdict comes last, since the newest stands first."""
    store = open_store(load_settings())
    _table("kept-and-dropped", "What each step kept and dropped", _kept_and_dropped(report))
    _table("splits", "Crops and places of each side; no place is on two sides", _sides(splits, store))
    curves = store.path(report.model_artifact, CURVES_FILE).read_bytes()
    _image("learning-curves", "How the training went on: loss on train and val, mean average precision on val", curves)
    _table("thresholds", "From which probability on each class is named", _thresholds(report))
    _image("confusion", "What is taken for what, on the test places", store.path(report.evaluation, "confusion.png").read_bytes())
    _table("scores", f"{report.model} {report.version} on the test places", _scores(report))
    reasons = "\n".join(f"- {reason}" for reason in report.reasons)
    where = f"The whole report, with the pictures of the mistakes: `{store.path(report.evaluation, 'report.html')}`"
    create_markdown_artifact(key="verdict", markdown=f"## {report.model} {report.version}\n\n{report.headline}\n\n{reasons}\n\n{where}")


def _table(key: str, description: str, rows: list[dict[str, Any]]) -> None:
    create_table_artifact(key=key, table=rows, description=description)


def _image(key: str, description: str, png: bytes) -> None:
    """As Markdown: an image artifact shows its address as well, and here that is the picture itself."""
    image = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    create_markdown_artifact(key=key, markdown=f"![{description}]({image})", description=description)


def _kept_and_dropped(report: Report) -> list[dict[str, Any]]:
    def why(dropped: dict[str, int]) -> str:
        return ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in dropped.items())

    return [{"step": step, "kept": c.kept, "of what": c.unit, "dropped": sum(c.dropped.values()), "why": why(c.dropped)} for step, c in report.story]


def _sides(splits: Artifact, store: Store) -> list[dict[str, Any]]:
    locations = store.table(splits, "locations.parquet")
    sides = {side: locations.loc[locations["split"] == side, "crops"] for side in ("train", "val", "test")}
    return [{"side": side, "crops": int(crops.sum()), "locations": len(crops)} for side, crops in sides.items()]


def _scores(report: Report) -> list[dict[str, Any]]:
    return [
        {"class": c.id, "test crops": c.examples, "locations": c.locations}
        | {"precision": _figure(c.precision), "recall": _figure(c.recall), "F1": _figure(c.f1), "AP": _figure(c.average_precision)}
        for c in report.metrics.classes
    ]


def _thresholds(report: Report) -> list[dict[str, Any]]:
    return [{"class": t.id, "aim": t.aim, "threshold": _figure(t.value), "reached on val": t.met} for t in report.metrics.thresholds]


def _figure(value: float | None) -> str:
    """With two digits; a table of Prefect's shows all sixteen."""
    return "" if value is None else f"{value:.2f}"
