"""The crops that the report shows: mistakes, missed invaders, suspect labels; never people."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd

from animl_pipeline.config import Plan
from animl_pipeline.core.category_names import is_person
from animl_pipeline.core.imaging import open_image
from animl_pipeline.inference.scoring import probability_column
from animl_pipeline.storage.step_cache import Store

MOST_MISTAKES = 6
"""Pictures of mistakes shown a class."""

MOST_MISSED = 12
"""Pictures of missed invaders shown."""

MOST_RIGHT = 2
"""Pictures of right answers shown a class."""

THUMBNAIL = 192
"""Longest side of a shown crop, in pixels; smaller crops are shown as they are."""


def classes_of_people(plan: Plan) -> frozenset[str]:
    """The plan's classes that mean people."""
    named = {c: {c.casefold(), *(n.casefold() for n in spec.names())} for c, spec in plan.labels.classes.items()}
    return frozenset(c for c, names in named.items() if any(map(is_person, names)))


def mistakes(scored: pd.DataFrame, ids: Sequence[str], hidden: Collection[str], store: Store) -> list[dict[str, Any]]:
    """For each class with mistakes, how many there are and the ones that the model was surest of."""
    wrong = scored[scored["class_id"] != scored["predicted"]].sort_values(["probability", "crop_id"], ascending=[False, True])
    groups = [(c, wrong[wrong["class_id"] == c]) for c in ids]
    return [{"name": c, "count": len(rows), "crops": shown(rows, hidden, store, MOST_MISTAKES)} for c, rows in groups if len(rows)]


def right_answers(scored: pd.DataFrame, ids: Sequence[str], hidden: Collection[str], store: Store) -> list[dict[str, Any]]:
    """A few right answers of each class, by crop_id, which is as good as chance."""
    right = scored[scored["class_id"] == scored["predicted"]].sort_values("crop_id")
    return [crop for c in ids for crop in shown(right[right["class_id"] == c], hidden, store, MOST_RIGHT)]


def shown(rows: pd.DataFrame, hidden: Collection[str], store: Store, most: int) -> list[dict[str, Any]]:
    """The first ``most`` crops as the page shows them; none that people or the model call a person, none of a picture that shows one."""
    open_to_all = rows[~rows["class_id"].isin(list(hidden)) & ~rows["predicted"].isin(list(hidden))]
    if "with_people" in open_to_all:  # a square around an animal may hold whoever stands beside it
        open_to_all = open_to_all[~open_to_all["with_people"].astype(bool)]
    keys = ["class_id", "predicted", "probability", "location", "source", "image_id"]
    return [
        {key: row[key] for key in keys}
        | {"of_truth": float(row[probability_column(row["class_id"])]), "image": thumbnail(store.blob(row["blob"])), "link": row.get("link", "")}
        for row in open_to_all.head(most).to_dict("records")
    ]


def thumbnail(png: bytes) -> str:
    """A stored crop as a small JPEG data URI."""
    crop = open_image(png)
    crop.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
