"""The crops that the report shows: mistakes, missed invasive animals, suspect labels, right answers. Never people."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.non_animal_names import is_person
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.storage.store import Store

MAX_MISTAKES = 6
"""Mistakes shown per class."""
MAX_MISSED = 12
"""Missed invasive animals shown."""
MAX_RIGHT = 2
"""Right answers shown per class."""
THUMBNAIL_SIZE = 192
"""Longest side of a shown crop in pixels; smaller crops are not enlarged."""


def classes_of_people(labels: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The classes that mean people: class → labels that people give."""
    return frozenset(c for c, names in labels.items() if any(map(is_person, [c, *names])))


def show_mistakes(scored: pd.DataFrame, ids: Sequence[str], people: Collection[str], store: Store) -> list[dict[str, Any]]:
    """For each class with mistakes: its name, their number, and the crops with the highest (wrong) probability."""
    wrong = scored[scored["class_id"] != scored["predicted"]].sort_values(["probability", "crop_id"], ascending=[False, True])
    groups = [(c, wrong[wrong["class_id"] == c]) for c in ids]
    return [{"name": c, "count": len(rows), "crops": show_crops(rows, people, store, MAX_MISTAKES)} for c, rows in groups if len(rows)]


def show_right_answers(scored: pd.DataFrame, ids: Sequence[str], people: Collection[str], store: Store) -> list[dict[str, Any]]:
    """A few right answers of each class, ordered by crop_id, which is a hash and so as good as random."""
    right = scored[scored["class_id"] == scored["predicted"]].sort_values("crop_id")
    return [crop for c in ids for crop in show_crops(right[right["class_id"] == c], people, store, MAX_RIGHT)]


def show_crops(rows: pd.DataFrame, people: Collection[str], store: Store, most: int) -> list[dict[str, Any]]:
    """The first ``most`` crops for the template. Leaves out crops labelled or predicted as people, and crops of images that show people."""
    shown = rows[~rows["class_id"].isin(list(people)) & ~rows["predicted"].isin(list(people))]
    if "with_people" in shown:  # a square around an animal may include a person beside it
        shown = shown[~shown["with_people"].astype(bool)]
    keys = ["class_id", "predicted", "probability", "location", "source", "image_id"]
    return [
        {key: row[key] for key in keys}
        | {
            "class_probability": float(row[probability_column(row["class_id"])]),
            "image": thumbnail(store.blob(row["blob"])),
            "link": row.get("link", ""),
            "rank": row.get("rank", 0),
            "below": float(row.get("below", 0.0)),
        }
        for row in shown.head(most).to_dict("records")
    ]


def thumbnail(crop: bytes) -> str:
    """A stored crop as a data URI of a small JPEG."""
    image = open_image(crop)
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
