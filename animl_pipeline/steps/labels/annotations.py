"""All sources' objects beside the images that they lie in, as columns: no row is looked at by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from animl_pipeline.config import SourceConfig
from animl_pipeline.core.records import Artifact
from animl_pipeline.steps.labels.shared_locations import shared_locations
from animl_pipeline.storage.step_cache import Store

WHOLE_FRAME = 0.95
"""A box that fills this share of both sides is what Animl leaves on an image once called empty: a label without a box."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Objects(NamedTuple):
    """Objects and images of all sources. ``image`` is each object's row in ``images``.

    images: ``image_id, file_name, place`` (with its name space), ``taken, sequence`` (with the source's name),
    ``blob, bytes, width, height`` (of the picture; null where it did not arrive), ``missing`` (whether it did not),
    ``over_limit`` (whether it was not fetched, by the source's limits). boxes: [n, 4] relative
    ``ymin, xmin, ymax, xmax``, NaN where there is none. names: each object's category as a code, and the categories.
    """

    sources: tuple[str, ...]
    images: pa.Table
    image: Ints
    annotation_id: pa.ChunkedArray
    name: Ints
    names: tuple[str, ...]
    confidence: Floats
    boxes: Floats
    boxed: Bools
    whole_frame: Bools
    unreviewed: Bools
    source: Ints

    def location(self) -> tuple[Ints, int]:
        """The place of each object as a code, -1 where unknown, and how many codes there are."""
        coded = self.images["location"].combine_chunks().dictionary_encode()
        codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        unknown = pc.index(coded.dictionary, "").as_py()
        codes[codes == unknown] = -1
        return codes[self.image], len(coded.dictionary)


class SourceTables(NamedTuple):
    """One source with its export, and with its pictures where those were fetched."""

    plan: SourceConfig
    export: Artifact
    images: Artifact | None = None


def read_objects(sources: Iterable[SourceTables], store: Store) -> Objects:
    """The objects of all sources; sources are in the order of their names."""
    ordered = sorted(sources, key=lambda s: s.plan.name)
    locations = shared_locations(ordered, store)
    parts = [_of_source(i, s, store, locations.get(s.plan.name, {})) for i, s in enumerate(ordered)]
    names = list(dict.fromkeys(name for part in parts for name in part.names))
    code = {name: i for i, name in enumerate(names)}
    starts = np.cumsum([0, *(len(part.images) for part in parts)])
    return Objects(
        sources=tuple(s.plan.name for s in ordered),
        images=pa.concat_tables([part.images for part in parts]),
        image=np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)]),
        annotation_id=pa.chunked_array([chunk for part in parts for chunk in part.annotation_id.chunks], pa.string()),
        name=np.concatenate([np.array([code[n] for n in part.names], np.int64)[part.name] for part in parts]),
        names=tuple(names),
        **{f: np.concatenate([getattr(part, f) for part in parts]) for f in ("confidence", "boxes", "boxed", "whole_frame", "unreviewed", "source")},
    )


def _of_source(number: int, source: SourceTables, store: Store, locations: Mapping[str, str]) -> Objects:
    objects = pq.read_table(store.path(source.export, "annotations.parquet"), read_dictionary=["label"])
    said = pq.read_table(
        store.path(source.export, "images.parquet"), columns=["image_id", "file_name", "location", "taken", "sequence", "width", "height"]
    )
    ids = said["image_id"].combine_chunks()
    image = pc.index_in(objects["image_id"], value_set=ids).to_numpy().astype(np.int64)
    images, sides = _with_images(said, ids, source, store, locations)
    coded = objects["label"].unify_dictionaries().combine_chunks()
    x, y, w, h = (objects[c].to_numpy() for c in "xywh")
    boxes, whole = _relative_boxes(np.stack([x, y, w, h]), sides[image].T)
    return Objects(
        sources=(source.plan.name,),
        images=images,
        image=image,
        annotation_id=objects["annotation_id"],
        name=coded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        names=tuple(coded.dictionary.to_pylist()),
        confidence=objects["confidence"].to_numpy(),
        boxes=boxes,
        boxed=~np.isnan(x),
        whole_frame=whole,
        unreviewed=~objects["reviewed"].to_numpy() & (source.plan.unreviewed == "drop"),
        source=np.full(len(image), number),
    )


def _with_images(said: pa.Table, ids: pa.Array, source: SourceTables, store: Store, locations: Mapping[str, str]) -> tuple[pa.Table, Floats]:
    """The images of an export beside their pictures; and [n, 2] the width and height in which their boxes are meant.

    Boxes are in the pixels of the export's own width and height; the picture may be a smaller copy. Without them the
    picture's own size counts; NaN where neither is known.
    """
    imgs, missing, beyond = _images(source, store)
    at = pc.index_in(ids, value_set=imgs["image_id"].combine_chunks())
    found = imgs.take(at)
    sides = [np.where((own := said[c].to_numpy()) > 0, own, found[c].to_numpy().astype(float)) for c in ("width", "height")]
    images = pa.table(
        {
            "image_id": ids,
            "file_name": said["file_name"],
            "location": _prefixed(said["location"], source.plan.namespace(), locations),
            "taken": said["taken"],
            "sequence": _prefixed(said["sequence"], source.plan.name, {}),
            **{c: found[c] for c in ("blob", "bytes", "width", "height")},
            "missing": pc.is_in(ids, value_set=missing),
            "over_limit": pc.is_in(ids, value_set=beyond),
        }
    )
    return images, np.stack(sides, axis=1)


def _images(source: SourceTables, store: Store) -> tuple[pa.Table, pa.Array, pa.Array]:
    """The pictures that were fetched, the ids of those that were not, and of those among them that were not meant to be."""
    if source.images is None:
        return IMAGES.empty_table(), pa.array([], pa.string()), pa.array([], pa.string())
    imgs = pq.read_table(store.path(source.images, "images.parquet"), columns=IMAGES.names).cast(IMAGES)
    missing = pq.read_table(store.path(source.images, "missing.parquet"), columns=["image_id", "reason"])
    ids = missing["image_id"].cast(pa.string()).combine_chunks()
    return imgs, ids, ids.filter(pc.equal(missing["reason"].cast(pa.string()), "over_limit").combine_chunks())


IMAGES = pa.schema(
    [("image_id", pa.string()), ("blob", pa.string()), ("bytes", pa.int64()), ("width", pa.int64()), ("height", pa.int64())],
)


def _prefixed(column: pa.ChunkedArray, space: str, called: Mapping[str, str]) -> pa.Array:
    """Names, as they are called in their name space, with that in front; empty ones stay empty."""
    coded = column.combine_chunks().dictionary_encode()
    names = pa.array([f"{space}/{called.get(name, name)}" if name else "" for name in coded.dictionary.to_pylist()], pa.string())
    return names.take(coded.indices)


def _relative_boxes(xywh: Any, sides: Any) -> tuple[Floats, Bools]:
    """[n, 4] ymin, xmin, ymax, xmax from absolute [x, y, w, h], cut at the frame; and which filled it.

    Whole-frame boxes become NaN: they name no animal's place.
    """
    (x, y, w, h), (width, height) = xywh, sides
    box = np.stack([y / height, x / width, (y + h) / height, (x + w) / width]).clip(0, 1).round(6)
    whole = (box[2] - box[0] >= WHOLE_FRAME) & (box[3] - box[1] >= WHOLE_FRAME)
    box[:, whole] = np.nan
    return box.T, whole
