"""The train side without a k-th of its places, so that a model trained on the rest can say what it thinks of their labels."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from animl_pipeline.core.records import Artifact, Counts
from animl_pipeline.core.step import Step
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.core.tables import write_table
from animl_pipeline.storage.step_cache import StepOutput, Store, Workspace

FOLD_STEP = Step("fold", version=1, sections=("audit",), reads=(CROPS, SPLITS), writes=(SPLITS,))


HELD = "held"
"""The side of crops that a fold's model does not see, instead of train."""


def fold_splits(crops: Artifact, splits: Artifact, folds: int, fold: int, store: Store) -> Artifact:
    """The splits once more (splits.parquet), the train crops of one fold's places on the side ``held``.

    Whole places are shared out to folds of about equal size. A place that holds all of a class's train crops, or without which a fold
    would have none of a class, is in no fold: its labels are not audited, and counted.

    Args:
        crops: the crops step.
        splits: the splits step.
        folds: how many there are.
        fold: which one, from 0.
        store: where the steps are.
    """

    def build(space: Workspace) -> StepOutput:
        table = store.table(splits, "splits.parquet")
        train = table[table["split"] == "train"].merge(store.table(crops, "crops.parquet")[["crop_id", "location", "class_id"]], on="crop_id")
        of_location = folds_of(train, folds)
        held = set(train.loc[train["location"].map(of_location) == fold, "crop_id"])
        never = int(train["location"].map(of_location).isna().sum())
        table["split"] = table["split"].where(~table["crop_id"].isin(list(held)), HELD)
        write_table(space.out, SPLITS, table)
        return StepOutput(Counts(kept=len(held), noted={"train_crops_in_no_fold": never} if never else {}, unit="held crops"))

    config = {"folds": folds, "fold": fold}
    return store.make(FOLD_STEP, inputs={"crops": crops, "splits": splits}, config=config, build=build)


def folds_of(train: pd.DataFrame, folds: int) -> Mapping[str, int]:
    """Place → fold, for the places that are in one."""
    known = train[train["location"] != ""]
    sizes = known.groupby("location").size().sort_index().sort_values(ascending=False, kind="stable")
    filled = [0] * folds
    found: dict[str, int] = {}
    for location, size in sizes.items():
        found[str(location)] = filled.index(min(filled))
        filled[found[str(location)]] += int(size)
    for _, part in train.groupby("class_id"):
        locations = part.groupby("location").size().sort_index().sort_values(ascending=False, kind="stable")
        if "" not in locations.index and len({found.get(str(p), -1) for p in locations.index}) == 1 and str(locations.index[0]) in found:
            del found[str(locations.index[0])]  # the fold would have nothing to learn this class from
    return found
