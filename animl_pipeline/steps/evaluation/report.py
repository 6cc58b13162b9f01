"""Render report.html: one self-contained page without scripts or outside addresses, readable on a phone and on paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from animl_pipeline.core.artifacts import Counts
from animl_pipeline.core.capture_times import parse_days
from animl_pipeline.core.evaluation_results import Metrics
from animl_pipeline.core.model_card import ModelCard
from animl_pipeline.core.report_formats import page_environment
from animl_pipeline.steps.evaluation import csv_tables_beside_report, plots, report_images, report_wording
from animl_pipeline.steps.evaluation.find_strangers import stranger_values
from animl_pipeline.steps.evaluation.metrics import describe_calibration, reliability_diagram
from animl_pipeline.steps.evaluation.score_test_set_and_later_images import compare_with_new_locations
from animl_pipeline.storage.store import Store

TEMPLATE = "report.html.j2"
MIN_CROPS_FOR_F1 = 10
"""A location with fewer test crops, or with one class only, gets no F1."""
MAX_TABLE_ROWS = 40
"""Rows of the table of suspect labels; the CSV file has all."""
MAX_NAMES = 60
"""Names outside of the plan that are listed."""
SURE_FROM_F1 = 0.6
"""With a lower mean F1, a model's doubts about labels are often its own mistakes."""
SPLIT_NAMES = ("train", "val", "test")
SLICE_TITLES = {"light": "light", "box": "size of the box", "level": "counted by"}


class ReportData(NamedTuple):
    """What a report shows.

    ``test``: the scored test crops of animals. ``scored``: these and those of false boxes. ``suspects``: suspect labels, with the
    probabilities of the model that audited them. ``audited``: which crops were audited, in words. ``strangers``: suspected strangers among
    the boxes of the test images, ``boxes`` in number; None if they are not known.
    """

    card: ModelCard
    metrics: Metrics
    test: pd.DataFrame
    scored: pd.DataFrame
    split: pd.DataFrame
    suspects: pd.DataFrame
    audited: str
    step_counts: Sequence[tuple[str, Counts]]
    digests: Mapping[str, str]
    files: Sequence[str] = ()
    learning_curves: bytes = b""
    strangers: pd.DataFrame | None = None
    boxes: int = 0


def render_report(data: ReportData, people: frozenset[str], max_suspects: int, store: Store) -> str:
    """The report as HTML.

    ``people``: classes that mean people, whose images are never shown.
    """
    missed = csv_tables_beside_report.missed_invaders(data.test, data.metrics.thresholds)
    values = _verdict_values(data) | _production_values(data) | _auto_accept_values(data) | _score_values(data) | _error_values(data, missed)
    values |= _image_values(data, missed, people, max_suspects, store) | _data_values(data)
    values |= stranger_values(data.strangers, data.boxes, store)
    values["unscored_classes"] = (
        *report_wording.describe_other_animal(data.metrics),
        *report_wording.describe_nothing(data.metrics, values["invasive"]),
    )
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(
        words=lambda text: text.replace("_", " "), sequences=report_wording.format_sequences, per_1000=report_wording.format_per_1000
    )
    return environment.get_template(TEMPLATE).render(values, step_counts=data.step_counts, digests=data.digests, files=data.files)


def _verdict_values(data: ReportData) -> dict[str, Any]:
    metrics = data.metrics
    return {
        "card": data.card,
        "chosen_on": "at the folds' locations" if data.card.out_of_fold else "on val",
        "later_rows": compare_with_new_locations(metrics),
        "metrics": metrics,
        "headline": report_wording.headline_sentences(metrics),
        "performance": report_wording.describe_performance(metrics)[:2] if metrics.verdict else (),
        "few": report_wording.classes_with_few_examples(metrics),
        "absent": report_wording.classes_without_examples(metrics),
        "few_examples": report_wording.FEW_EXAMPLES,
        "few_locations": report_wording.FEW_LOCATIONS,
        "unknown_locations": int((data.test["location"] == "").sum()),
        "images": len(data.test[["source", "image_id"]].drop_duplicates()),
        "invasive": [t.id for t in metrics.thresholds if t.group == "invasive" and not t.children],
    }


def _production_values(data: ReportData) -> dict[str, Any]:
    """The production score: a sentence for each invasive class (for each class where none is invasive), and the changes by class."""
    production = data.metrics.production
    if production is None:
        return {"production": None}
    invasive = {t.id for t in data.metrics.thresholds if t.group == "invasive"}
    shown = [c for c in production.classes if c.recall is not None and (c.id in invasive or not invasive)]
    changes = {c.id: c for c in production.comparison.classes} if production.comparison else {}
    return {
        "production": production,
        "found": [report_wording.describe_production(c) for c in shown],
        "false_alarms_in_words": report_wording.describe_false_alarms(production),
        "production_changes": changes,
    }


def _auto_accept_values(data: ReportData) -> dict[str, Any]:
    found = data.metrics.auto_accept
    return {
        "auto_accept": found,
        "auto_accept_sentences": report_wording.describe_auto_accepts(found) if found else [],
        "risk": plots.risk_curves(found) if found else None,
    }


def _score_values(data: ReportData) -> dict[str, Any]:
    metrics, test = data.metrics, data.test
    slices = {title: [s for s in metrics.slices if s.by == by] for by, title in SLICE_TITLES.items()}
    return {
        "curves": plots.precision_recall_curves(test, metrics),
        "reliability": {name: points.tolist() for name, points in reliability_diagram(test, data.card)._asdict().items()},
        "calibration": describe_calibration(metrics.calibration) if metrics.calibration else "",
        "slices": {title: found for title, found in slices.items() if found},
        "several_classes": [s for s in metrics.slices if s.left_out],
        "locations": location_rows(test),
        "min_crops_for_f1": MIN_CROPS_FOR_F1,
    }


def _data_values(data: ReportData) -> dict[str, Any]:
    """What the model learnt from and was tested on: crops and locations, days, learning curves, names that the plan does not have."""
    outside = {name: n for title, counts in data.step_counts if title == "labels" for name, n in counts.names_of("unlisted_label").items()}
    curves = base64.b64encode(data.learning_curves).decode()
    return {
        "splits": split_rows(data.split, data.card.class_ids()),
        "days": day_rows(data.split),
        "outside": list(outside.items())[:MAX_NAMES],
        "outside_count": len(outside),
        "learning_curves": f"data:image/png;base64,{curves}" if curves else "",
    }


def _error_values(data: ReportData, missed: pd.DataFrame) -> dict[str, Any]:
    return {
        "false_alarms": false_alarm_rows(csv_tables_beside_report.false_alarms(data.scored, data.metrics.thresholds), len(data.scored)),
        "missed_count": len(missed),
        "invasive_count": sum(c.examples for c in data.metrics.classes if c.id in {t.id for t in data.metrics.thresholds if t.group == "invasive"}),
        "many_false_alarms": report_wording.classes_with_many_false_alarms(data.metrics.thresholds),
        "sure_from_f1": SURE_FROM_F1,
        "missed_below": int((~missed["reaches_threshold"].astype(bool)).sum()),
        "audited": data.audited,
        "suspects": data.suspects.head(MAX_TABLE_ROWS).to_dict("records"),
        "suspect_count": len(data.suspects),
    }


def _image_values(data: ReportData, missed: pd.DataFrame, people: frozenset[str], max_suspects: int, store: Store) -> dict[str, Any]:
    ids = data.card.class_ids()
    missed_crops = data.test.set_index("crop_id", drop=False).loc[list(missed["crop_id"])]
    missed_crops["below"] = missed["threshold"].where(~missed["reaches_threshold"].astype(bool), 0.0).to_numpy()
    gallery = report_images.Gallery(people, store)
    return {
        "missed": gallery.show(missed_crops, report_images.MAX_MISSED),
        "mistakes": gallery.show_mistakes(data.test, ids),
        "suspect_crops": gallery.show(data.suspects, max_suspects),
        "right": gallery.show_right_answers(data.test, ids),
        "people": sorted(people),
    }


def location_rows(scored: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per test location, most crops first: location, crops, classes, accuracy, and F1 (None with too few crops)."""
    rows = []
    for location, part in scored.groupby("location"):
        accuracy = float((part["class_id"] == part["predicted"]).mean())
        rows.append({"location": location, "crops": len(part), "classes": part["class_id"].nunique(), "accuracy": accuracy, "f1": _location_f1(part)})
    return sorted(rows, key=lambda row: (-row["crops"], row["location"]))


def split_rows(split: pd.DataFrame, ids: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class and one for all: crops and locations in train, val and test."""
    groups = [(c, split[split["class_id"] == c]) for c in ids] + [("all", split)]
    return [{"name": name} | {s: _count_crops(rows[rows["split"] == s]) for s in SPLIT_NAMES} for name, rows in groups]


def day_rows(split: pd.DataFrame) -> list[dict[str, str]]:
    """For each split whose images have times: its name, the first and the last day."""
    days = pd.Series(parse_days(split["taken"].fillna("").astype(str)), split.index).dropna()
    spans = [(name, days[split.loc[days.index, "split"] == name]) for name in SPLIT_NAMES]
    return [{"name": name, "first": f"{of_split.min():%Y-%m-%d}", "last": f"{of_split.max():%Y-%m-%d}"} for name, of_split in spans if len(of_split)]


def false_alarm_rows(alarms: pd.DataFrame, crops: int) -> list[dict[str, Any]]:
    """One row per class with false alarms: how many, per 1,000 crops, of which classes and at which locations most."""
    rows = []
    for (group, name), part in alarms.groupby(["group", "class"], sort=True):
        classes, locations = (
            part[c].value_counts().sort_index().sort_values(ascending=False, kind="stable").head(3).items() for c in ("class_id", "location")
        )
        rows.append({
            "name": name, "group": group, "count": len(part), "per_1000": 1000 * len(part) / max(1, crops),
            "classes": ", ".join(f"{class_id} ({n:,})" for class_id, n in classes),
            "locations": ", ".join(f"{location or '(unknown)'} ({n:,})" for location, n in locations),
        })  # fmt: skip
    return rows


def _count_crops(rows: pd.DataFrame) -> dict[str, int]:
    return {"crops": len(rows), "locations": len(set(rows["location"]) - {""})}


def _location_f1(part: pd.DataFrame) -> float | None:
    """Mean F1 over the classes that a location has."""
    from sklearn.metrics import f1_score

    present = sorted(set(part["class_id"]))
    if len(part) < MIN_CROPS_FOR_F1 or len(present) < 2:
        return None
    return float(f1_score(part["class_id"], part["predicted"], labels=present, average="macro", zero_division=0.0))
