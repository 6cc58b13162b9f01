"""The images and locations that a model learnt from, kept with its training, so that a later test set can be compared with them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import CROPS, SPLITS, TRAINED_IMAGES
from animl_pipeline.storage.manifest import Manifest
from animl_pipeline.storage.store import Store

IMAGE_PREFIX = 16
"""The first characters of an image's sha256 stand for the image, as in the registry of the test set."""


def list_trained_images(crops: pd.DataFrame, earlier: Sequence[Artifact], store: Store) -> pd.DataFrame:
    """The table TRAINED_IMAGES of a training: images of train and val, and those that its initial weights learnt from.

    Args:
        crops: crops of train and val, with the columns ``location`` and ``image``.
        earlier: the trainings in the store that made the weights from which it starts, and those of its frozen networks.
        store: holds these trainings.
    """
    own = pd.DataFrame({"location": crops["location"], "image": crops["image"].str.slice(0, IMAGE_PREFIX)})
    return (
        pd.concat([own, *(store.table(training, TRAINED_IMAGES) for training in earlier)])
        .drop_duplicates()
        .sort_values(["location", "image"], ignore_index=True)
    )


def describe_learnt_test_set(training: Manifest, crops: Artifact, splits: Artifact, store: Store) -> str:
    """What a model learnt from the test set of a split, in words; "" if nothing.

    Args:
        training: the manifest of the model's training.
        crops: the artifact of the step crops.
        splits: the artifact of the step splits.
        store: holds them.

    Raises:
        DamagedError: the table of the training is missing or changed.
    """
    if TRAINED_IMAGES.file not in training.files:
        return "an earlier version trained it and did not record from which locations it learnt"
    learnt = store.table(training.artifact(cached=True), TRAINED_IMAGES)
    split = store.table(splits, SPLITS)
    rows = store.table(crops, CROPS, ["crop_id", "location", "image"])
    test = rows[rows["crop_id"].isin(split.loc[split["split"] == "test", "crop_id"])]
    locations = (set(test["location"]) & set(learnt["location"])) - {""}
    later = rows[rows["crop_id"].isin(split.loc[split["split"] == "test_later", "crop_id"])]
    images = (set(pd.concat([test, later])["image"].str.slice(0, IMAGE_PREFIX)) & set(learnt["image"])) - {""}
    if not locations and not images:
        return ""
    return f"it learnt from {len(locations):,} locations and {len(images):,} images of this test set"
