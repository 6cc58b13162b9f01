"""Which empty images give crops of false boxes: people reviewed them and called them empty, and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd

from animl_pipeline.config import NothingConfig
from animl_pipeline.core.false_box_and_sample_types import spread_over_locations
from animl_pipeline.steps.labels.choose_annotations import REASONS, Choice
from animl_pipeline.steps.labels.class_mapping import EMPTY
from animl_pipeline.steps.labels.read_annotations import Annotations, Bools, Ints


def add_empty_images(annotations: Annotations, choice: Choice, config: NothingConfig, class_number: int) -> tuple[Annotations, Choice]:
    """Give one label of each chosen empty image the class for false boxes. It loses its box, because all boxes in the image are false.

    The other labels of empty images stay left out as empty.

    Args:
        annotations: the annotations of all sources.
        choice: what was decided about each.
        config: how many images are used.
        class_number: position of the class for false boxes.
    """
    is_empty = choice.reason == REASONS.index(EMPTY)
    candidates = _candidates(annotations, is_empty)
    image = annotations.image[candidates]
    ids, locations = (annotations.images[c].take(image).to_pylist() for c in ("image_id", "location"))
    names = [f"{annotations.sources[s]}/{i}" for s, i in zip(annotations.source[candidates], ids, strict=True)]
    chosen = candidates[spread_over_locations(names, locations, config.max_images, config.max_per_location)]
    numbers, reason, boxes = choice.class_number.copy(), choice.reason.copy(), annotations.boxes.copy()
    numbers[chosen], reason[chosen], boxes[chosen] = class_number, 0, np.nan
    return annotations._replace(boxes=boxes), Choice(numbers, reason)


def _candidates(annotations: Annotations, is_empty: Bools) -> Ints:
    """The first annotation of each downloaded image that only has reviewed labels which mean empty.

    This also holds for all other records of the same file, and for all other files with the same bytes: what a person labelled in any
    of them is no false box.
    """
    other = ~(is_empty & annotations.reviewed)
    blob = annotations.images["blob"].to_pandas().to_numpy(object)[annotations.image]
    rows = pd.DataFrame({"image": annotations.image, "file": annotations.image_file(), "blob": blob, "other": other})
    labelled = rows.groupby("file")["other"].transform("any") | rows.groupby("blob")["other"].transform("any").astype("boolean").fillna(False)
    found = rows[~labelled.to_numpy(bool) & rows["blob"].notna() & ~annotations.image_missing()]
    return np.asarray(found.drop_duplicates("blob").index, np.int64)
