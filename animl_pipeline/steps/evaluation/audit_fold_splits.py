"""Splits for the label audit of train crops: a model is trained without a part of the train locations, and audits the labels there."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from animl_pipeline.core.artifacts import Artifact, Counts
from animl_pipeline.core.step_declaration import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.storage.store import StepOutput, Store, Workspace

FOLD_STEP = Step("fold", version=1, sections=("audit",), reads=(CROPS, SPLITS), writes=(SPLITS,))
HELD_OUT = "held_out"
"""The split of train crops that the fold's model does not see."""


def fold_splits(crops: Artifact, splits: Artifact, folds: int, fold: int, store: Store) -> Artifact:
    """The splits (splits.parquet) with the train crops of one fold in the split ``held_out``.

    Each fold is a set of whole locations; folds are about equal in size. A location is in no fold if a fold's model would have no example
    of a class without it. The labels there are not audited; their number is in the counts.

    Args:
        crops: the crops step.
        splits: the splits step.
        folds: number of folds.
        fold: which one, from 0.
        store: holds the steps.
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
