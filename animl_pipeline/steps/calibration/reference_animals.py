"""Choose animals that the model learnt from, so that animals unlike all of them can be found later (:mod:`inference.embedding_reference`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.inference.calibration_and_threshold_metrics import probability_matrix
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.inference.embedding_reference import distances_at_other_locations, fit_reference, with_limit
from animl_pipeline.inference.score_crops import score_and_embed_crops
from animl_pipeline.storage.store import Store

MAX_PER_CLASS = 200
"""Animals of a class, each of another sequence. The time that they take is that of as many answers."""
MIN_ANIMALS = 10
"""With fewer there is no reference."""


def write_reference(folder: Path, classifier: Classifier, answered: pd.DataFrame, crops: Artifact, splits: Artifact, store: Store) -> str | None:
    """Write the reference into ``folder``, and return its sha256; None if the model gives no embeddings or learnt from few animals only.

    Args:
        folder: of the step's files.
        classifier: the model.
        answered: the calibrated answers for val, or if the model learnt from val, too, the out-of-fold answers; they give the limit.
        crops: the step crops.
        splits: the step splits.
        store: holds the crops.
    """
    card = classifier.card
    rows = store.table(crops, CROPS).merge(store.table(splits, SPLITS), on="crop_id")
    rows = rows[rows["class_id"].isin(card.class_ids())]
    learnt = _choose(rows[rows["split"].isin(("train", "val") if card.out_of_fold else ("train",))])
    if not classifier.has_embeddings() or len(learnt) < MIN_ANIMALS:
        return None

    def embed(animals: pd.DataFrame) -> NDArray[np.float32]:
        return score_and_embed_crops(animals, classifier, store, card.model_input, "reference animals").embeddings

    embeddings, numbers = embed(learnt), learnt["class_id"].map(list(card.class_ids()).index).to_numpy(np.int64)
    reference = fit_reference(embeddings, numbers)
    known = learnt if card.out_of_fold else _choose(rows[rows["split"] == "val"])
    has_answer = known["crop_id"].isin(answered["crop_id"]).to_numpy()
    if has_answer.sum() >= MIN_ANIMALS:
        if card.out_of_fold:
            distances = distances_at_other_locations(embeddings, numbers, known["location"].to_numpy(object))
        else:
            distances = reference.distances(reference.components(embed(known)))
        answers = answered.set_index("crop_id").loc[known.loc[has_answer, "crop_id"]]
        reference = with_limit(reference, distances[has_answer], probability_matrix(answers, card.class_ids()))
    return reference.save(folder)


def _choose(rows: pd.DataFrame) -> pd.DataFrame:
    """At most ``MAX_PER_CLASS`` crops of each class, the first of each sequence by crop_id, which is a hash."""
    group = rows["sequence"].where(rows["sequence"] != "", rows["image_id"])
    first = rows.assign(group=group).sort_values("crop_id").drop_duplicates(["class_id", "source", "group"])
    return first.groupby("class_id").head(MAX_PER_CLASS).drop(columns=["group", "split"]).reset_index(drop=True)
