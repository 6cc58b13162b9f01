"""Render replay.html: the labels that a new model would change, by class, with crops of the changed ones. Never people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from animl_pipeline.core.artifacts import BlobReader
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.crop_for_page import crop_data_uri
from animl_pipeline.core.report_formats import image_link, page_environment
from animl_pipeline.steps.replay.replay_result import Replay, describe_replay

MAX_SHOWN = 12
"""Crops of each group."""
GROUPS = (
    ("Alarms gained", True, "gained", "The new model gives the label of an invasive class, the model in service does not."),
    ("Alarms lost", True, "lost", "The model in service gives the label of an invasive class, the new model does not."),
    ("Other labels gained", False, "gained", "Only the new model gives them."),
    ("Other labels lost", False, "lost", "Only the model in service gives them."),
)
"""Title, whether of invasive classes, change, and explanation of each group of crops."""
ORDER = {"wrong": 0, "": 1, "right": 2}
"""Of gained labels, wrong ones are shown first; of lost ones, right ones are."""


def render_page(replay: Replay, labels: pd.DataFrame, model: str, image_url: str, store: BlobReader) -> str:
    """The page as HTML. All text from Animl is escaped.

    Args:
        replay: the result.
        labels: REPLAYED_LABELS.
        model: the plan's model.
        image_url: address of an image in Animl; "" for no links.
        store: holds the images.
    """
    invasive = [c.id for c in replay.classes if c.invasive]
    groups = []
    for title, is_alarm, change, explanation in GROUPS:
        rows = labels[(labels["change"] == change) & (labels["class_id"].isin(invasive) == is_alarm)]
        order = rows["judged"].map(ORDER) * (1 if change == "gained" else -1)
        rows = rows.assign(order=order).sort_values(["order", "probability"], ascending=[True, change == "lost"], kind="stable")
        shown = rows[~rows["people"].astype(bool)].head(MAX_SHOWN)
        groups.append((title, explanation, len(rows), [_show(row, image_url, store) for row in shown.to_dict("records")]))
    template = page_environment(Path(__file__).parent).get_template("replay.html.j2")
    page: str = template.render(replay=replay, text=describe_replay(replay), model=model, groups=groups)
    return page


def _show(row: dict[Any, Any], image_url: str, store: BlobReader) -> dict[str, Any]:
    box = Box.of([row[side] for side in ("ymin", "xmin", "ymax", "xmax")])
    return {**row, "crop": crop_data_uri(store, row["image"], box), "link": image_link(image_url, str(row["image_id"]))}
