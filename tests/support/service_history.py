"""A synthetic history of a model in service, as Animl's ``images`` would answer it: cameras, versions, reviews, and a drop if wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np

from animl_pipeline.integrations.animl.names_of_ids import ProjectNames
from animl_pipeline.steps.monitor.service_outcomes import ServedModel

MODEL = "isle-classifier"
CLASSES = ("rat", "fox", "bird")
NAMES = ProjectNames({name: name for name in (*CLASSES, "animal", "cow", "empty")}, {}, {})
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
VERSIONS = ((BEGIN, "v1"), (BEGIN + timedelta(days=180), "v2"), (BEGIN + timedelta(days=365), "v3"))


class History(NamedTuple):
    """What a history is like.

    Attributes:
        days: its length.
        cameras: how many.
        rate: sequences of each class a day, of all cameras together.
        recall, false_share: of each class; the share of other animals and false boxes that get a wrong class.
        reviewed: share of the sequences that people review, a week after they were taken.
        drop_from: since which day the recall of ``rat`` is lower by ``drop``; None: never.
        images: of a sequence, at most.
    """

    days: int = 548
    cameras: int = 30
    rate: float = 1.0
    recall: float = 0.92
    false_share: float = 0.1
    reviewed: float = 0.8
    drop_from: int | None = None
    drop: float = 0.15
    images: int = 3


def served_model() -> ServedModel:
    """The model of the history."""
    meanings = {name: name for name in CLASSES} | {"empty": ""}
    return ServedModel(MODEL, CLASSES, {}, {}, meanings, tuple((start.timestamp(), version) for start, version in VERSIONS), 3)


def draw_history(history: History, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The images of a history in order of time, as Animl answers them."""
    rng = np.random.default_rng(seed)
    kinds = (*CLASSES, "cow", "")  # an animal outside of the plan, and a false box
    n = rng.poisson(history.rate * history.days * len(kinds))
    for number, day in enumerate(np.sort(rng.random(n) * history.days)):
        yield from _sequence(history, number, float(day), kinds[int(rng.integers(len(kinds)))], rng)


def _sequence(history: History, number: int, day: float, kind: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    taken = BEGIN + timedelta(days=day)
    camera = int(rng.integers(history.cameras))
    version = [name for start, name in VERSIONS if start <= taken][-1]
    recall = history.recall - (history.drop if kind == "rat" and history.drop_from is not None and day >= history.drop_from else 0)
    named = kind if kind in CLASSES and rng.random() < recall else ""
    if kind not in CLASSES and rng.random() < history.false_share:
        named = CLASSES[int(rng.integers(len(CLASSES)))]
    reviewed = bool(rng.random() < history.reviewed)
    date = taken + timedelta(days=7)
    for i in range(int(rng.integers(1, history.images + 1))):
        at, review = taken + timedelta(seconds=i), {"validated": True, "validationDate": date.isoformat()}
        made = {"type": "ml", "labeledDate": at.isoformat(), "mlModel": MODEL, "mlModelVersion": version, "conf": float(rng.uniform(0.6, 1))}
        detected = {
            "labelId": "animal",
            "type": "ml",
            "mlModel": "megadetector_v5a",
            "mlModelVersion": "5a",
            "conf": 0.5,
            "labeledDate": at.isoformat(),
        }
        right = named == kind
        labels = [{"labelId": named, **made, "validation": review | {"validated": right} if reviewed else None}] if named else []
        labels.append(detected | {"validation": review | {"validated": False} if reviewed else None})
        if reviewed and kind and not right:
            labels.append({"labelId": kind, "type": "manual", "validation": review})
        yield {
            "_id": f"isle:{number:06d}-{i}",
            "cameraId": f"cam{camera}",
            "deploymentId": f"site{camera}",
            "dateTimeAdjusted": at.isoformat(),
            "dateAdded": at.isoformat(),
            "timezone": "UTC",
            "reviewed": reviewed,
            "tags": [],
            "objects": [{"_id": f"{number}-{i}", "locked": reviewed, "labels": labels}],
        }


def project_names(history: History) -> ProjectNames:
    """The names of the project: cameras stand at locations of their own."""
    return NAMES._replace(deployments={f"site{i}": f"Site {i}" for i in range(history.cameras)})


def label_name(label: Mapping[str, Any]) -> str:
    """The name of a label in the history."""
    return NAMES.labels[label["labelId"]]
