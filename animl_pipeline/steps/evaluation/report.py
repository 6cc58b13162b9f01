"""report.html: one self-contained page without script or outer address, readable on a phone and on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.config import Plan
from animl_pipeline.core.records import Counts, Metrics, ModelCard, Part
from animl_pipeline.steps.evaluation import calibration_metrics, error_tables, plots, report_images
from animl_pipeline.steps.evaluation import metrics as scores
from animl_pipeline.storage.step_cache import Store

TEMPLATE = Path(__file__).with_name("report.html.j2")

FEW_FOR_F1 = 10
"""A place with fewer test crops, or with one class only, has no F1 worth printing."""

MOST_ROWS = 40
"""Of a long table; the CSV files beside the report hold all."""

SPLITS = ("train", "val", "test")
LEVELS = {"light": "light", "box": "size of the box", "level": "counted as"}


class Scored(NamedTuple):
    """What a report is of: the model, its scores, and the crops behind them.

    ``split`` holds all crops that are used, with their split; ``suspects`` the labels that the model disbelieves, with its answers.
    """

    card: ModelCard
    metrics: Metrics
    test: pd.DataFrame
    split: pd.DataFrame
    suspects: pd.DataFrame
    audited: str


def render(done: Scored, digests: Mapping[str, str], plan: Plan, store: Store, story: Sequence[tuple[str, Counts]] = ()) -> str:
    """The report as HTML.

    Args:
        done: the model, its scores and its crops.
        digests: step name → digest of the evaluation's inputs.
        plan: says which classes are invasive, which are people, and how many suspect labels are shown.
        store: where the crops' pictures are.
        story: name and counts of each earlier step.
    """
    page: str = _template().render(**_figures(done), **_crops(done, plan, store), digests=digests, story=story)
    return page


@cache
def _template() -> Any:
    """The page's template, compiled once."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(share=_share, percent=scores.percent, words=lambda text: text.replace("_", " "), ends=_ends, change="{:+.2f}".format)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _figures(done: Scored) -> dict[str, Any]:
    """All of the page but pictures."""
    card, metrics, test = done.card, done.metrics, done.test
    missed, false = error_tables.missed_invaders(test, metrics.thresholds), error_tables.false_alarms(test, metrics.thresholds)
    return {
        "card": card,
        "metrics": metrics,
        "sentences": scores.sentences(metrics),
        "also": scores.how_good(metrics)[:2] if metrics.verdict else (),
        "verdicts": scores.VERDICTS,
        "thin": scores.thin_classes(metrics),
        "absent": scores.absent_classes(metrics),
        "few_examples": scores.FEW_EXAMPLES,
        "few_locations": scores.FEW_LOCATIONS,
        "few_for_f1": FEW_FOR_F1,
        "unknown_locations": int((test["location"] == "").sum()),
        "images": len(test[["source", "image_id"]].drop_duplicates()),
        "curves": plots.precision_recall_curves(test, metrics),
        "reliability": {name: points.tolist() for name, points in calibration_metrics.reliability_of(test, card)._asdict().items()},
        "calibrated": calibration_metrics.said_of_calibration(metrics.calibration) if metrics.calibration else "",
        "invasive": [t.id for t in metrics.thresholds if t.group == "invasive"],
        "alarms": _alarm_rows(false, len(test)),
        "missed_count": len(missed),
        "missed_below": int((missed["at_threshold"] == "missed").sum()),
        "parts": {LEVELS[by]: [p for p in metrics.parts if p.by == by] for by in LEVELS if any(p.by == by for p in metrics.parts)},
        "mixed": _left_out(metrics.parts),
        "locations": location_rows(test),
        "splits": split_rows(done.split, card.class_ids()),
        "audited": done.audited,
        "suspects": done.suspects.head(MOST_ROWS).to_dict("records"),
        "suspect_count": len(done.suspects),
    }


def _crops(done: Scored, plan: Plan, store: Store) -> dict[str, Any]:
    """The page's pictures."""
    ids, hidden = done.card.class_ids(), report_images.classes_of_people(plan)
    missed = error_tables.missed_invaders(done.test, done.metrics.thresholds)
    rows = done.test.set_index("crop_id", drop=False)
    return {
        "missed": report_images.shown(rows.loc[list(missed["crop_id"])], hidden, store, report_images.MOST_MISSED),
        "mistakes": report_images.mistakes(done.test, ids, hidden, store),
        "right": report_images.right_answers(done.test, ids, hidden, store),
        "disbelieved": report_images.shown(done.suspects, hidden, store, plan.audit.show),
        "people": sorted(hidden),
    }


def location_rows(scored: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a test place, most test crops first: place, crops, classes, accuracy, and F1 (None where there is too little of it)."""
    rows = []
    for location, part in scored.groupby("location"):
        accuracy = float((part["class_id"] == part["predicted"]).mean())
        rows.append({"location": location, "crops": len(part), "classes": part["class_id"].nunique(), "accuracy": accuracy, "f1": _location_f1(part)})
    return sorted(rows, key=lambda row: (-row["crops"], row["location"]))


def split_rows(split: pd.DataFrame, ids: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class and one for all: crops and places in train, val and test."""
    groups = [(c, split[split["class_id"] == c]) for c in ids] + [("all", split)]
    return [{"name": name} | {s: _extent(rows[rows["split"] == s]) for s in SPLITS} for name, rows in groups]


def _alarm_rows(false: pd.DataFrame, crops: int) -> list[dict[str, Any]]:
    """One row a class with false alarms: how many, of 1000 crops, of which animals, and at which places most."""
    rows = []
    for (group, name), part in false.groupby(["group", "class"], sort=True):
        of, at = (part[column].value_counts().sort_index().sort_values(ascending=False, kind="stable") for column in ("class_id", "location"))
        rows.append({
            "name": name, "group": group, "count": len(part), "per_1000": 1000 * len(part) / max(1, crops),
            "of": ", ".join(f"{class_id} ({n:,})" for class_id, n in of.head(3).items()),
            "at": ", ".join(f"{location or '(unknown)'} ({n:,})" for location, n in at.head(3).items()),
        })  # fmt: skip
    return rows


def _left_out(parts: Sequence[Part]) -> list[Part]:
    return [p for p in parts if p.left_out]


def _extent(rows: pd.DataFrame) -> dict[str, int]:
    return {"crops": len(rows), "locations": len(set(rows["location"]) - {""})}


def _location_f1(part: pd.DataFrame) -> float | None:
    """Macro F1 over the classes that a place holds."""
    from sklearn.metrics import f1_score

    present = sorted(set(part["class_id"]))
    if len(part) < FEW_FOR_F1 or len(present) < 2:
        return None
    return float(f1_score(part["class_id"], part["predicted"], labels=present, average="macro", zero_division=0.0))


def _ends(interval: tuple[float, float] | None, sign: bool = False) -> str:
    """An interval as printed, ``0.60–0.70``; "" for none."""
    if interval is None:
        return ""
    return " to ".join(f"{v:+.2f}" for v in interval) if sign else "–".join(f"{v:.2f}" for v in interval)


def _share(value: float) -> str:
    """A probability or score as printed: two decimals, and never 1.00 or 0.00 for what is not quite so."""
    if 0.995 <= value < 1:
        return ">0.99"
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:.2f}"
