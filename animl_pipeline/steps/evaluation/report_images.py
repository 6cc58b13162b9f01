"""The images that the report shows: mistakes, missed invasive animals, suspect labels, right answers. Never people.

Of a sequence, one crop is shown, with the others behind it. Behind it, too, is the whole image, as long as the page stays small.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, ImageStat

from animl_pipeline.core.box_type import Box
from animl_pipeline.core.capture_times import parse_seconds
from animl_pipeline.core.category_names import is_person
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_column
from animl_pipeline.storage.store import Store

MAX_MISTAKES = 6
"""Mistakes shown per class."""
MAX_MISSED = 12
"""Missed invasive animals shown."""
MAX_RIGHT = 2
"""Right answers shown per class."""
MAX_OF_SEQUENCE = 8
"""Further crops of a sequence shown behind its first one."""
SEQUENCE_GAP_S = 60.0
"""Images of a location that follow each other within so many seconds are a sequence; without times, the export says which are."""
THUMBNAIL_SIZE, DARK_SIZE, OTHERS_SIZE, WHOLE_SIZE = 192, 256, 96, 640
"""Longest side in pixels of a shown crop, of a dark one, of a further one of a sequence, and of a whole image. Smaller ones are not enlarged."""
DARK = 55.0
"""A crop whose mean grey level (0–255) is below this is shown brightened and larger."""
MAX_BEHIND = 1_500_000
"""Characters of all images of a page together that are behind others. With it, a page of 20 classes stays below 5 MB."""


def classes_of_people(labels: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The classes that mean people: class → labels that people give."""
    return frozenset(c for c, names in labels.items() if any(map(is_person, [c, *names])))


class Gallery:
    """Makes the crops of one page for its template, in the order of the page."""

    def __init__(self, people: Collection[str], store: Store) -> None:
        """For a page that never shows the classes in ``people``. ``store`` holds crops and images."""
        self._people, self._store = list(people), store
        self._left = MAX_BEHIND
        self._anchors: dict[tuple[str, Any], str] = {}

    def show(self, rows: pd.DataFrame, most: int, *, behind: bool = True) -> list[dict[str, Any]]:
        """The first ``most`` sequences of the rows; each is its first crop, with the others as ``others`` and their number as ``more``.

        Leaves out crops labelled or predicted as people, and crops of images that show people.

        ``behind``: whether the other crops of a sequence and the whole image are behind a crop.
        """
        shown = rows[~rows["class_id"].isin(self._people) & ~rows["predicted"].isin(self._people)].reset_index(drop=True)
        if "with_people" in shown:  # a square around an animal may include a person beside it
            shown = shown[~shown["with_people"].astype(bool)].reset_index(drop=True)
        sequences = shown.groupby(sequence_numbers(shown), sort=False).indices.values()
        return [self._show_sequence(shown.iloc[indices], behind) for indices in list(sequences)[:most]]

    def show_mistakes(self, scored: pd.DataFrame, ids: Sequence[str]) -> list[dict[str, Any]]:
        """For each class with mistakes: its name, their number, and the crops with the highest (wrong) probability."""
        wrong = scored[scored["class_id"] != scored["predicted"]].sort_values(["probability", "crop_id"], ascending=[False, True])
        groups = [(c, wrong[wrong["class_id"] == c]) for c in ids]
        return [{"name": c, "count": len(rows), "crops": self.show(rows, MAX_MISTAKES)} for c, rows in groups if len(rows)]

    def show_right_answers(self, scored: pd.DataFrame, ids: Sequence[str]) -> list[dict[str, Any]]:
        """A few right answers of each class, ordered by crop_id, which is a hash and so as good as random."""
        right = scored[scored["class_id"] == scored["predicted"]].sort_values("crop_id")
        return [crop for c in ids for crop in self.show(right[right["class_id"] == c], MAX_RIGHT, behind=False)]

    def _show_sequence(self, rows: pd.DataFrame, behind: bool) -> dict[str, Any]:
        first, *others = rows.to_dict("records") if behind else rows.head(1).to_dict("records")
        image = open_image(self._store.blob(first["blob"]))
        dark = is_dark(image)
        shown = []
        for row in others[:MAX_OF_SEQUENCE]:
            uri = self._within_limit(data_uri(open_image(self._store.blob(row["blob"])), OTHERS_SIZE))
            if uri:
                shown.append({"image": uri, "probability": row["probability"], "link": row.get("link", "")})
        keys = ["class_id", "predicted", "probability", "location", "source", "image_id"]
        return {key: first[key] for key in keys} | {
            "class_probability": float(first[probability_column(first["class_id"])]),
            "taken": str(first["taken"] or "")[:16].replace("T", " "),
            "image": data_uri(image, DARK_SIZE if dark else THUMBNAIL_SIZE),
            "dark": dark,
            "link": first.get("link", ""),
            "rank": first.get("rank", 0),
            "below": float(first.get("below", 0.0)),
            "others": shown,
            "more": len(others),
            "whole": self._whole_image(first) if behind else None,
        }

    def _whole_image(self, row: Mapping[Any, Any]) -> dict[str, Any] | None:
        """The image with its box in per cent, or only where it is on the page already; None if the page has enough of them."""
        box = Box(**{name: row[name] for name in Box.model_fields})
        key = (row["image"], box)
        if key in self._anchors:
            return {"anchor": self._anchors[key], "image": None}
        uri = self._within_limit(data_uri(open_image(self._store.blob(row["image"])), WHOLE_SIZE, quality=70))
        if not uri:
            return None
        self._anchors[key] = f"image-{len(self._anchors) + 1}"
        sides = {"left": box.xmin, "top": box.ymin, "width": box.xmax - box.xmin, "height": box.ymax - box.ymin}
        return {"anchor": self._anchors[key], "image": uri, "box": {name: f"{100 * side:.2f}%" for name, side in sides.items()}}

    def _within_limit(self, uri: str) -> str:
        """The image, which counts from now on; "" if the page has enough of them."""
        if len(uri) > self._left:
            return ""
        self._left -= len(uri)
        return uri


def sequence_numbers(rows: pd.DataFrame) -> pd.Series:
    """A number for each crop, the same for crops of one sequence with the same label and answer.

    ``rows``: crops with ``source``, ``location``, ``sequence``, ``taken``, ``image_id``, ``class_id`` and ``predicted``.
    """
    camera = ["source", "location", "class_id", "predicted"]
    seconds = pd.Series(parse_seconds(rows["taken"].fillna("").astype(str)), rows.index)
    in_time = rows.assign(seconds=seconds).sort_values([*camera, "seconds"], kind="stable")
    number = (~(in_time.groupby(camera)["seconds"].diff() <= SEQUENCE_GAP_S)).cumsum().reindex(rows.index).astype(str)
    by_sequence = rows["sequence"].where(rows["sequence"] != "", rows["image_id"])
    known = seconds.notna() & (rows["location"] != "")
    moment = number.where(known, "sequence " + by_sequence)
    keys = rows[camera].assign(moment=moment)
    return pd.Series(np.asarray(keys.groupby([*camera, "moment"], sort=False).ngroup()), rows.index)


def is_dark(image: Image.Image) -> bool:
    """Whether people can hardly see what an image shows."""
    return bool(ImageStat.Stat(image.convert("L")).mean[0] < DARK)


def data_uri(image: Image.Image, size: int, quality: int = 80) -> str:
    """An image as a data URI of a small JPEG, brightened if it is dark.

    ``size``: longest side in pixels; a smaller image is not enlarged.
    """
    image.thumbnail((size, size))
    if is_dark(image):
        image = ImageOps.autocontrast(image.point([round(255 * (v / 255) ** 0.6) for v in range(256)] * 3), cutoff=(0, 1), preserve_tone=True)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
