"""Choose animals that the model learnt from, so that animals unlike all of them can be found later (:mod:`inference.embedding_reference`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.table_schemas import CROPS, SPLITS
from animl_pipeline.inference.classifier import Classifier
from animl_pipeline.inference.embedding_reference import fit_reference, limit_of
from animl_pipeline.inference.score_crops import score_and_embed_crops
from animl_pipeline.storage.store import Store

MAX_PER_CLASS = 200
"""Animals of a class, each of another sequence. The time that they take is that of as many answers."""
MIN_ANIMALS = 10
"""With fewer there is no reference."""


def write_reference(folder: Path, classifier: Classifier, crops: Artifact, splits: Artifact, store: Store) -> str | None:
    """Write the reference into ``folder``, and return its sha256; None if the model gives no embeddings or learnt from few animals only.

    Its limit comes from val, or from the learnt animals at other locations than their neighbours' if the model learnt from val, too.
    """
    card, split = classifier.card, store.table(splits, SPLITS)
    rows = store.table(crops, CROPS).merge(split, on="crop_id")
    rows = rows[rows["class_id"].isin(card.class_ids())]
    learnt, val = (_choose(rows[rows["split"].isin(names)]) for names in (("train", "val") if card.out_of_fold else ("train",), ("val",)))
    if not classifier.has_embeddings() or len(learnt) < MIN_ANIMALS:
        return None
    embeddings = score_and_embed_crops(learnt, classifier, store, card.model_input, "reference animals").embeddings
    numbers = learnt["class_id"].map(list(card.class_ids()).index).to_numpy(np.int64)
    where = learnt["location"].to_numpy(object)
    reference = fit_reference(embeddings, numbers, where)
    if not card.out_of_fold and len(val) >= MIN_ANIMALS:
        found = score_and_embed_crops(val, classifier, store, card.model_input, "val animals").embeddings
        reference = reference._replace(limit=limit_of(reference, reference.components(found), val["location"].to_numpy(object), where))
    return reference.save(folder)


def _choose(rows: pd.DataFrame) -> pd.DataFrame:
    """At most ``MAX_PER_CLASS`` crops of each class, the first of each sequence by crop_id, which is a hash."""
    group = rows["sequence"].where(rows["sequence"] != "", rows["image_id"])
    first = rows.assign(group=group).sort_values("crop_id").drop_duplicates(["class_id", "source", "group"])
    return first.groupby("class_id").head(MAX_PER_CLASS).drop(columns=["group", "split"]).reset_index(drop=True)
