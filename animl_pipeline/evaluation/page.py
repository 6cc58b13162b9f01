"""report.html: one self-contained page without script or outer address, readable on a phone and on paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from animl_pipeline.evaluation import charts, scores
from animl_pipeline.evaluation.predictions import probability_column
from animl_pipeline.pixels import open_picture
from animl_pipeline.records import Counts, Metrics, ModelCard
from animl_pipeline.store import Store

TEMPLATE = Path(__file__).with_name("report.html.j2")

MOST_MISTAKES = 6
"""Pictures of mistakes shown a class."""

MOST_RIGHT = 2
"""Pictures of right answers shown a class."""

THUMBNAIL = 192
"""Longest side of a shown crop, in pixels; smaller crops are shown as they are."""

FEW_FOR_F1 = 10
"""A place with fewer test crops, or with one class only, has no F1 worth printing."""

SPLITS = ("train", "val", "test")


def render(
    card: ModelCard,
    metrics: Metrics,
    scored: pd.DataFrame,
    split: pd.DataFrame,
    digests: Mapping[str, str],
    store: Store,
    story: Sequence[tuple[str, Counts]] = (),
) -> str:
    """The report as HTML.

    Args:
        card: of the model that was scored.
        metrics: its scores.
        scored: test crops with predictions.
        split: all crops that are used, with their split.
        digests: step name → digest of the evaluation's inputs.
        store: where the crops' pictures are.
        story: name and counts of each earlier step.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(share=_share, percent=scores.percent, words=lambda text: text.replace("_", " "))
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        card=card,
        metrics=metrics,
        sentences=scores.sentences(metrics),
        thin=scores.thin_classes(metrics),
        absent=scores.absent_classes(metrics),
        few_examples=scores.FEW_EXAMPLES,
        few_places=scores.FEW_PLACES,
        few_for_f1=FEW_FOR_F1,
        unknown_places=int((scored["place"] == "").sum()),
        pictures=len(scored[["source", "image_id"]].drop_duplicates()),
        curves=charts.precision_recall_curves(scored, metrics),
        places=place_rows(scored),
        splits=split_rows(split, card.class_ids()),
        mistakes=_mistakes(scored, card.class_ids(), store),
        most_mistakes=MOST_MISTAKES,
        right=_right(scored, card.class_ids(), store),
        digests=digests,
        story=story,
    )


def place_rows(scored: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a test place, most test crops first: place, crops, classes, accuracy, and F1 (None where there is too little of it)."""
    rows = []
    for place, part in scored.groupby("place"):
        accuracy = float((part["label"] == part["predicted"]).mean())
        rows.append({"place": place, "crops": len(part), "classes": part["label"].nunique(), "accuracy": accuracy, "f1": _place_f1(part)})
    return sorted(rows, key=lambda row: (-row["crops"], row["place"]))


def split_rows(split: pd.DataFrame, ids: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class and one for all: crops and places in train, val and test."""
    groups = [(c, split[split["label"] == c]) for c in ids] + [("all", split)]
    return [{"name": name} | {s: _extent(rows[rows["split"] == s]) for s in SPLITS} for name, rows in groups]


def _extent(rows: pd.DataFrame) -> dict[str, int]:
    return {"crops": len(rows), "places": len(set(rows["place"]) - {""})}


def _place_f1(part: pd.DataFrame) -> float | None:
    """Macro F1 over the classes that a place holds."""
    from sklearn.metrics import f1_score

    present = sorted(set(part["label"]))
    if len(part) < FEW_FOR_F1 or len(present) < 2:
        return None
    return float(f1_score(part["label"], part["predicted"], labels=present, average="macro", zero_division=0.0))


def _mistakes(scored: pd.DataFrame, ids: Sequence[str], store: Store) -> list[dict[str, Any]]:
    """For each class with mistakes, how many there are and the ones that the model was surest of."""
    wrong = scored[scored["label"] != scored["predicted"]].sort_values(["probability", "crop_id"], ascending=[False, True])
    groups = [(c, wrong[wrong["label"] == c]) for c in ids]
    return [{"name": c, "count": len(rows), "crops": _shown(rows.head(MOST_MISTAKES), store)} for c, rows in groups if len(rows)]


def _right(scored: pd.DataFrame, ids: Sequence[str], store: Store) -> list[dict[str, Any]]:
    """A few right answers of each class, by crop_id, which is as good as chance."""
    right = scored[scored["label"] == scored["predicted"]].sort_values("crop_id")
    return [shown for c in ids for shown in _shown(right[right["label"] == c].head(MOST_RIGHT), store)]


def _shown(rows: pd.DataFrame, store: Store) -> list[dict[str, Any]]:
    keys = ["label", "predicted", "probability", "place", "source", "image_id"]
    return [
        {key: row[key] for key in keys} | {"of_truth": float(row[probability_column(row["label"])]), "image": _thumbnail(store.blob(row["blob"]))}
        for _, row in rows.iterrows()
    ]


def _thumbnail(png: bytes) -> str:
    """A stored crop as a small JPEG data URI."""
    crop = open_picture(png)
    crop.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _share(value: float) -> str:
    """A probability or score as printed: two decimals, and never 1.00 or 0.00 for what is not quite so."""
    if 0.995 <= value < 1:
        return ">0.99"
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:.2f}"
