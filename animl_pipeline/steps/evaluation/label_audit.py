"""Find labels that may be wrong, so that a reviewer can check them before the next training.

A label is audited only by a model that never saw its location: the model itself for val and test, and the folds' models for train
(``audit.folds``). If folds chose how the model learns, it also learnt from val, and those folds' models audit train and val. A model mostly
repeats the labels that it was trained on.

The rule is confident learning (Northcutt, Jiang, Chuang 2021, arXiv 1911.00068). The usual probability of a class is its mean over the
crops with that label. A label is suspect if its probability is below the usual one of its class, and the predicted class reaches its own
usual probability or ``HIGH_PROBABILITY``. The largest difference between the two probabilities comes first.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from animl_pipeline.core.image_links import image_link
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_matrix
from animl_pipeline.steps.evaluation.metrics import class_indices

HIGH_PROBABILITY = 0.9
"""Enough for any class. The usual probability of an easy class is near 1, so half of its clear cases are below it."""
SUSPECT_COLUMNS = [
    "rank", "class_id", "label_probability", "predicted", "predicted_probability", "difference",
    "split", "location", "source", "image_id", "annotation_id", "crop_id", "link",
]  # fmt: skip


def find_suspect_labels(scored: pd.DataFrame, ids: tuple[str, ...], link: str = "") -> pd.DataFrame:
    """The suspect labels, the largest difference first: all columns of ``scored`` and ``SUSPECT_COLUMNS``.

    Args:
        scored: crops with their split, and probabilities by a model that did not see their location.
        ids: the classes.
        link: address of an image in Animl, with {project} and {image}; "" for no links.
    """
    p = probability_matrix(scored, ids)
    label = class_indices(scored["class_id"], ids)
    usual = np.array([p[label == i, i].mean() if (label == i).any() else 1.0 for i in range(len(ids))])
    predicted = p.argmax(axis=1)
    rows = np.arange(len(p))
    of_label, of_predicted = p[rows, label], p[rows, predicted]
    suspect = (predicted != label) & (of_label < usual[label]) & (of_predicted >= np.minimum(usual[predicted], HIGH_PROBABILITY))
    found: pd.DataFrame = scored[suspect].assign(
        predicted=np.asarray(ids, dtype=object)[predicted[suspect]],
        label_probability=of_label[suspect],
        predicted_probability=of_predicted[suspect],
        difference=(of_predicted - of_label)[suspect],
    )
    found = found.sort_values(["difference", "crop_id"], ascending=[False, True], ignore_index=True)
    found["rank"] = np.arange(1, len(found) + 1)
    found["link"] = [image_link(link, image) for image in found["image_id"]]
    return found
