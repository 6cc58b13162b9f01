"""Suspected strangers: animals in the test images that are unlike all that the model learnt from, with what people call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from animl_pipeline.core.artifacts import Artifact
from animl_pipeline.core.box_type import Box
from animl_pipeline.core.category_names import is_person, is_vehicle
from animl_pipeline.core.decode_image import open_image
from animl_pipeline.core.model_card import ModelCard, ModelInput
from animl_pipeline.core.model_input import extract_crop
from animl_pipeline.core.report_formats import image_link
from animl_pipeline.inference.classifier import CARD_FILE
from animl_pipeline.inference.embedding_reference import REFERENCE_FILE, EmbeddingReference
from animl_pipeline.steps.evaluation.production_score import SequenceData
from animl_pipeline.steps.evaluation.report_images import THUMBNAIL_SIZE, data_uri
from animl_pipeline.storage.store import Store

MAX_SHOWN = 12
"""Strangers that the report shows."""
MAX_NAMES = 20
NO_ANIMAL = "no animal"
"""What people say of a box that shows nothing they labelled."""
CSV_COLUMNS = ["rank", "score", "people_say", "in_plan", "likeliest", "probability", "location", "taken", "source", "image_id", "link"]
SHOWN = ModelInput(size=THUMBNAIL_SIZE, margin=0.15)
Floats = NDArray[np.floating]


def load_reference(model: Artifact, card: ModelCard, store: Store) -> EmbeddingReference | None:
    """The animals that a calibrated model learnt from; None if it has none."""
    if card.embedding_reference is None:
        return None
    store.path(model, REFERENCE_FILE)
    return EmbeddingReference.load(store.path(model, CARD_FILE).parent, card)


def find_strangers(
    data: SequenceData, probability: Floats, embeddings: Floats, reference: EmbeddingReference, card: ModelCard, image_url: str
) -> pd.DataFrame:
    """The boxes above the reference's limit, the strangest first, one of each sequence: ``CSV_COLUMNS``, ``image``, ``with_people`` and the box.

    ``probability``: float [boxes, outputs]. ``embeddings``: float [boxes, width].
    """
    scores = reference.stranger_scores(embeddings, probability)
    said = pd.Series(data.reviewed.truth[data.truth]).groupby(data.truth_box).agg(lambda names: ", ".join(sorted(set(names))))
    names = said.reindex(np.arange(len(scores))).fillna(NO_ANIMAL).to_numpy(object)
    known = {*card.animal_ids(), NO_ANIMAL}
    people = {int(i) for i, name in zip(data.reviewed.truth_image, data.reviewed.truth, strict=True) if is_person(name) or is_vehicle(name)}
    found = data.boxes[["image", "ymin", "xmin", "ymax", "xmax"]].assign(
        score=scores,
        people_say=names,
        in_plan=[set(str(name).split(", ")) <= known for name in names],
        likeliest=np.asarray(card.class_ids(), object)[probability.argmax(axis=1)] if len(scores) else [],
        probability=probability.max(axis=1, initial=0.0),
        sequence=data.reviewed.sequence[data.box_image],
        with_people=[int(i) in people for i in data.box_image],
    )
    of_image = data.images.iloc[data.box_image][["location", "taken", "source", "image_id"]].reset_index(drop=True)
    found = pd.concat([found.reset_index(drop=True), of_image], axis=1)
    found = found[found["score"] > reference.limit].sort_values(["score", "image_id"], ascending=[False, True], kind="stable")
    found = found.drop_duplicates("sequence").drop(columns="sequence").reset_index(drop=True)
    return found.assign(rank=np.arange(1, len(found) + 1), link=[image_link(image_url, image) for image in found["image_id"]])


def stranger_values(found: pd.DataFrame | None, boxes: int, store: Store) -> dict[str, Any]:
    """What the report's template shows of them; nothing if ``found`` is None."""
    if found is None:
        return {"strangers": None}
    counts = found.groupby(["people_say", "in_plan"]).size().rename("count").reset_index().rename(columns={"people_say": "name"})
    names = counts.sort_values("count", ascending=False, kind="stable").head(MAX_NAMES).to_dict("records")
    shown = found[~found["with_people"].astype(bool)].head(MAX_SHOWN)
    return {"strangers": {"count": len(found), "boxes": boxes, "names": names, "crops": [_show(row, store) for row in shown.to_dict("records")]}}


def _show(row: Mapping[Any, Any], store: Store) -> dict[str, Any]:
    box = Box.of([row[side] for side in ("ymin", "xmin", "ymax", "xmax")])
    crop = extract_crop(open_image(store.blob(row["image"])), box, SHOWN)
    return {name: row[name] for name in CSV_COLUMNS} | {
        "taken": str(row["taken"] or "")[:16].replace("T", " "),
        "image": data_uri(crop, THUMBNAIL_SIZE),
    }
