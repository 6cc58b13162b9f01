"""Find labels that may be wrong, so that a reviewer can check them before the next training.

A label is audited only by a model that never saw its location: the model itself for val and test, and the folds' models for train
(``audit.folds``). If folds chose how the model learns, it also learnt from val, and those folds' models audit train and val. A model mostly
repeats the labels that it was trained on.

The rule is confident learning (Northcutt, Jiang, Chuang 2021, arXiv 1911.00068). The usual probability of a class is its mean over the
crops with that label. A label is suspect if its probability is below the usual one of its class, and the predicted class reaches its own
usual probability or ``HIGH_PROBABILITY``. The largest difference between the two probabilities comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.report_formats import image_link
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_matrix
from animl_pipeline.steps.evaluation.metrics import class_indices
from animl_pipeline.storage.store import StepOutput, Store, Workspace

HIGH_PROBABILITY = 0.9
"""Enough for any class. The usual probability of an easy class is near 1, so half of its clear cases are below it."""
SUSPECT_COLUMNS = [
    "rank", "class_id", "label_probability", "predicted", "predicted_probability", "difference",
    "split", "location", "source", "image_id", "annotation_id", "crop_id", "link",
]  # fmt: skip
FOLD_STEP = Step("fold", version=1, sections=("audit",), reads=(CROPS, SPLITS), writes=(SPLITS,))
HELD_OUT = "held_out"
"""The split of train crops that the fold's model does not see."""


def find_suspect_labels(scored: pd.DataFrame, ids: tuple[str, ...], link: str = "") -> pd.DataFrame:
    """The suspect labels, the largest difference first: all columns of ``scored`` and ``SUSPECT_COLUMNS``.

    ``scored``: crops with their split, and probabilities by a model that did not see their location. ``link``: address of an image in Animl,
    with {project} and {image}; "" for no links.
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


def fold_splits(crops: Artifact, splits: Artifact, folds: int, fold: int, store: Store) -> Artifact:
    """The splits (splits.parquet) with the train crops of one fold in the split ``held_out``.

    Each fold is a set of whole locations; folds are about equal in size. A location is in no fold if a fold's model would have no example
    of a class without it. The labels there are not audited; their number is in the counts.

    ``fold``: which one, from 0.
    """

    def build(space: Workspace) -> StepOutput:
        table = store.table(splits, SPLITS)
        train = table[table["split"] == "train"].merge(store.table(crops, CROPS, ["crop_id", "location", "class_id"]), on="crop_id")
        fold_of_row = train["location"].map(assign_folds(train, folds))
        held_out = train.loc[fold_of_row == fold, "crop_id"]
        in_no_fold = int(fold_of_row.isna().sum())
        table["split"] = table["split"].where(~table["crop_id"].isin(held_out), HELD_OUT)
        write_table(space.out, SPLITS, table)
        return StepOutput(Counts(kept=len(held_out), notes={"train_crops_in_no_fold": in_no_fold} if in_no_fold else {}, unit="held-out crops"))

    return store.make(FOLD_STEP, inputs={"crops": crops, "splits": splits}, config={"folds": folds, "fold": fold}, build=build)


def assign_folds(train: pd.DataFrame, folds: int) -> Mapping[str, int]:
    """Location → fold, largest locations first, each to the smallest fold so far. Locations that must stay in training are left out."""
    known = train[train["location"] != ""]
    sizes = known.groupby("location").size().sort_index().sort_values(ascending=False, kind="stable")
    fold_sizes = [0] * folds
    found: dict[str, int] = {}
    for location, size in sizes.items():
        fold = fold_sizes.index(min(fold_sizes))
        found[str(location)] = fold
        fold_sizes[fold] += int(size)
    for _, rows in train.groupby("class_id"):
        counts = rows.groupby("location").size().sort_index().sort_values(ascending=False, kind="stable")
        largest = str(counts.index[0])
        if "" not in counts.index and len({found.get(str(c), -1) for c in counts.index}) == 1 and largest in found:
            del found[largest]  # all locations of this class are in one fold, whose model could not learn it
    return found
