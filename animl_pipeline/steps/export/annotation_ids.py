"""Give each annotation of an export an id of its own: tools leave ids out, write 0 for all, or begin again at each image."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from animl_pipeline.steps.export.columns_from_json import Bools, Floats, as_mask
from animl_pipeline.steps.export.problems import Problems


class AnnotationIds(NamedTuple):
    """An id for each annotation: text [n]; and which annotations are repetitions of an earlier one: bool [n]."""

    ids: pa.Array
    repeated: Bools


def unique_annotation_ids(ids: pa.Array, image_ids: pa.Array, labels: pa.Array, boxes: Floats, usable: Bools, problems: Problems) -> AnnotationIds:
    """An id of its own for each usable annotation.

    An annotation with the id, image, label and box of an earlier one is a repetition. Annotations without an id, and those that
    share theirs with another label or image, get an id that is made from these four values, so that it stays when the export grows.

    Args:
        ids: text [n], "" where there is none.
        image_ids: text [n].
        labels: text [n].
        boxes: float [n, 4], NaN where there is none.
        usable: bool [n]; the others keep what they have.
        problems: takes in how many ids were made.
    """
    if pc.count_distinct(ids).as_py() == len(ids) and not pc.any(pc.equal(ids, "")).as_py():
        return AnnotationIds(ids, np.zeros(len(ids), bool))
    codes = {name: column.dictionary_encode().indices.to_numpy() for name, column in (("id", ids), ("image", image_ids), ("label", labels))}
    rows = pd.DataFrame({**codes, **{side: boxes[:, i] for i, side in enumerate("xywh")}})[usable]
    repeated, shared = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    repeated[usable] = rows.duplicated()
    left = usable & ~repeated
    shared[left] = rows.loc[left[usable], "id"].duplicated(keep=False)
    without = left & as_mask(pc.equal(ids, ""))
    new = np.flatnonzero(without | shared)
    given, images, names = (column.take(pa.array(new)).to_pylist() for column in (ids, image_ids, labels))
    made = [f"{image}#{_digest(*values)}" for image, values in zip(images, zip(given, names, boxes[new], strict=True), strict=True)]
    texts = np.asarray(ids.to_pylist(), object)
    texts[new] = made
    for reason, mask in (("annotation_without_id", without), ("annotation_id_of_several", shared & ~without)):
        problems.add_many(reason, texts[mask].tolist(), [f"id {text!r}"[:160] for text in ids.filter(pa.array(mask)).to_pylist()])
    return AnnotationIds(pa.array(texts, pa.string()), repeated)


def _digest(annotation_id: str, label: str, box: Floats) -> str:
    return hashlib.sha256(repr((annotation_id, label, box.tolist())).encode()).hexdigest()[:16]
